"""What each kernel computes, in plain torch and in the dtype of its arguments (float64 in tests).

No triton, no speed: one function per op, under the op's name, to be read beside the kernel.
"""
