"""The networks of GeneFace in torch, and the speaker bundle in numpy."""
