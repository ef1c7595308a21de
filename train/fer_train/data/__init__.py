"""Labelled images: made out of photographs and data sets (`fer-data`), read, audited, augmented and mixed.

What `fer-data` uses needs no PyTorch; augment and mixup do.
"""
