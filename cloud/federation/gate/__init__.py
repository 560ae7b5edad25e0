"""The gate that looks at behaviour: a candidate adapter is run, compared, and certified anew before
any device starts from it.

``config`` is what is asked for, ``rows`` its files, ``running`` the bundle with an adapter,
``comparing`` the questions, ``evaluation`` an examination as a whole, ``gate`` what the coordinator
asks, ``judgements`` what the store keeps of it.
"""
