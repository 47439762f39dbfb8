"""Which masks of a data folder look wrong to networks that never saw them.

``crossvalidate`` trains a network for each fold and predicts the images held out of it,
``explanations`` tries out what could have gone wrong with a mask that disagrees, ``suspicion``
ranks, and ``search`` does all three for a data folder.
"""
