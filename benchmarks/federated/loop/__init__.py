"""Does a fleet escalate less, week by week, at the same certified target? Real data, a real
teacher, and the product's own devices and coordinator (``cloud.fleet``).

``tasks`` is the data, ``arms`` what is compared, ``local`` the arm in which nothing is sent, and
``figures`` runs it all and makes rows of it.
"""
