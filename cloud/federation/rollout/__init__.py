"""How an approved adapter comes to the devices, and goes again: a canary share of a channel first,
then all of it, or back.

``config`` is what is asked for, ``counts`` what devices have reported, ``deciding`` the sequential
test, ``rollouts`` what the store keeps, ``serving`` what it means for a channel, ``rollout`` who
does it.
"""
