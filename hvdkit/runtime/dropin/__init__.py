"""Horovod's own names, mended: operations (bfloat16 everywhere) and functions (optimizer state restored exactly).

Importing its modules loads Horovod. Signatures are Horovod's; a test compares them.
"""
