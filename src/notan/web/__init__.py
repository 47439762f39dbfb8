"""What every server of ours shares: who may come in, what may come in, and a bounded end.

``listen`` binds an address, ``Guard`` stands before an application and ``WebServer`` serves it
until it is told to stop. Nothing here knows of models.
"""
