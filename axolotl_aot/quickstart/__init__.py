"""The first run: a small model, a task that a program can check, and YAMLs to align the model on it.

The task is to sort four letters. The base model is trained here, in about half a minute, on data in
which half of the answers are sorted upwards and half downwards, so that it samples each about half of
the time. The preference data want upwards. An answer is right (upwards), wrong (downwards) or malformed
(anything else); the share of the last shows whether training moved mass from wrong to right, or merely
pushed the wrong answers down.

Everything is drawn from one seed; nothing is downloaded, and nothing of the rest of the package imported.
"""
