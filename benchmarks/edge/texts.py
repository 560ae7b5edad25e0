"""What the engines read in the benchmarks: our own words, of several kinds."""

from __future__ import annotations

from typing import Literal

PASSAGES = (
    """\
The harbour town wakes before the sun does. By four in the morning the first trucks have backed
up to the quay, and the auctioneer walks along the crates with a lamp and a notebook. Mackerel
comes in all year, herring in spring and late summer, and in a good week there is monkfish,
which nobody here eats and which the restaurants of the capital pay well for. Prices are called
out so fast that visitors take it for singing. At six the hall is empty, the floor has been
hosed down, and the cafe across the road serves eggs to people who have already worked a whole
day. Most of them will sleep until noon, mend nets in the afternoon, and go out again at ten in
the evening, when the tide allows it. The boats are smaller than they used to be, and there are
fewer of them.""",
    """\
Question: A train leaves at 14:35 and arrives at 17:10. It stops four times, for three minutes
each. How long does it move?
Answer: From 14:35 to 17:10 there are two hours and thirty-five minutes, which is 155 minutes.
Four stops of three minutes take 12 minutes. The train moves for 155 minus 12, that is 143
minutes, or two hours and twenty-three minutes.
Question: A shop sells pencils in boxes of twelve. A school needs 250 pencils. How many boxes
does it buy, and how many pencils are left over?
Answer: 250 divided by 12 is 20 with a remainder of 10, so 20 boxes are not enough. The school
buys 21 boxes, which hold 252 pencils, and two pencils are left over.
Question: The sum of two numbers is 30 and their difference is 4. What are they?
Answer: Adding both equations gives twice the larger number, 34, so it is 17, and the other is
13.""",
    """\
def moving_average(values, width):
    \"\"\"Average of each window of `width` neighbouring values.\"\"\"
    if width < 1 or width > len(values):
        raise ValueError("width must be between 1 and the number of values")
    total = sum(values[:width])
    averages = [total / width]
    for new, old in zip(values[width:], values):
        total += new - old
        averages.append(total / width)
    return averages


def test_moving_average():
    assert moving_average([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5]
    assert moving_average([5], 1) == [5.0]

The function keeps a running total instead of adding up every window again, so that it takes a
time proportional to the number of values and not to the product of that number and the width.""",
    """\
Dear Mrs Okafor, thank you for your letter of 3 March. We are sorry that the washing machine
which you bought from us stopped working after only five weeks. Our technician will visit you on
Thursday between nine and twelve; he will bring the part that, from your description, has most
likely failed. If he cannot repair the machine on the spot, we will deliver a new one on the
following Monday and take the old one with us, at no cost to you. Please let us know if that day
does not suit you. You also asked whether the guarantee starts again with the new machine. It
does: you have two full years from the day of delivery. With kind regards, and apologies for the
trouble, the customer service.""",
    """\
Photosynthesis turns light into chemical energy. In the leaves of a plant, chlorophyll absorbs
red and blue light and reflects green, which is why leaves look green. The energy splits water
into oxygen, which escapes, and hydrogen, which is bound to carriers. In a second series of
reactions, the Calvin cycle, the plant uses these carriers to build sugar from carbon dioxide.
Warmth speeds both series up to a point; beyond about forty degrees the enzymes lose their shape
and the rate collapses. On a bright day it is usually carbon dioxide, not light, that limits
growth, and growers of tomatoes therefore add it to the air of their greenhouses. At night the
plant burns a part of its sugar and gives off carbon dioxide as animals do.""",
)
"""Prose, sums, code, a letter, an explanation."""

CHAT: tuple[tuple[Literal["user", "assistant"], str], ...] = (
    (
        "user",
        "I have rice, two eggs, a carrot and some soy sauce. What can I cook in twenty minutes?",
    ),
    (
        "assistant",
        "You can make egg fried rice. Boil the rice first and let it cool on a plate while "
        "you cut the carrot into small cubes. Fry the carrot in a little oil for three "
        "minutes, push it to the side of the pan, and scramble the eggs next to it. Then add "
        "the rice and fry everything over high heat for four minutes, stirring all the time. "
        "At the end add a tablespoon of soy sauce. If you have a spring onion, cut it into "
        "rings and put it on top.",
    ),
    (
        "user",
        "Can I do it without eggs?",
    ),
    (
        "assistant",
        "Yes. Use tofu, or a handful of peas, or simply more vegetables. Fry tofu on its own "
        "first, until it is brown on two sides, and add it again at the end. Without eggs the "
        "rice needs a little more soy sauce, because the eggs would have brought some flavour "
        "of their own.",
    ),
)
"""Roles and texts of a conversation."""

STORY = (
    PASSAGES[0]
    + "\nOn the last Friday of October, however, none of the boats went out. The old man who kept "
    "the lighthouse had seen something in the water, and he told everybody who would listen about "
    "it. He said that"
)
"""A text that goes on; its beginning is cut to the length that is wanted."""

CARD_PROMPT = "A customer of a bank writes: {message}\nThe topic of this message is:"
"""Names no option."""

CARD_MESSAGES = (
    "I paid with my card in a shop yesterday, and this morning I see the same amount twice in the "
    "list of my payments.",
    "The machine kept my card and gave me no money.",
    "Why was I charged a fee for sending euros to my sister?",
    "My standing order for the rent did not go out this month.",
    "I sent money to the wrong account and want it back.",
    "The shop says that it refunded me a week ago, but nothing has arrived.",
    "A payment that I never made stands in my statement.",
    "How long does it take until a transfer from abroad is here?",
    "I withdrew fifty, but the machine gave me forty.",
    "The exchange rate of my last payment looks wrong.",
    "Somebody took the gas bill from my account although I cancelled the contract.",
    "My card was declined at the petrol station, and I had enough money.",
    "I want to raise how much I may take out in a day.",
    "The top up by cheque still says pending after five days.",
    "My employer paid my salary on Friday and I cannot see it.",
    "I closed the account, and you still take the monthly fee.",
)
"""Short messages to a bank, made up."""

CARD_QUESTION = CARD_PROMPT.format(message=CARD_MESSAGES[0])
"""32 to 48 tokens for the models of the catalog."""

TOPICS = tuple(
    f"{thing} {what}"
    for thing in (
        "card payment",
        "cash withdrawal",
        "bank transfer",
        "direct debit",
        "top up",
        "exchange rate",
        "virtual card",
    )
    for what in (
        "charged twice",
        "declined",
        "pending for days",
        "not recognised",
        "fee is wrong",
        "limit reached",
        "to be cancelled",
        "amount is wrong",
        "not available abroad",
        "needs verification",
        "missing from the statement",
    )
)
"""77 options of two to seven words."""
