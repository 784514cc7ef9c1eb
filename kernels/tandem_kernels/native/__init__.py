"""The CPU's kernels, in C with OpenMP: built once per machine by its C compiler, called on torch tensors' memory.

Each op computes what its reference in `tandem_kernels.reference` does, with one promise more: a row's bits depend on
that row alone, never on its batch, its chunk or the number of threads. Where nothing can be built, callers use torch.
"""

from tandem_kernels.native.library import NativeError as NativeError
from tandem_kernels.native.linear import PackedWeight as PackedWeight
from tandem_kernels.native.linear import has_packed_linear as has_packed_linear
from tandem_kernels.native.ops import NativeOps as NativeOps
from tandem_kernels.native.ops import PagedCache as PagedCache
