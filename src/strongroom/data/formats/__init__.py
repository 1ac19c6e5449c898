"""The arrays in a file, by name: what each format's header says, checked before anything is allocated.

No format here can hold code: object arrays and pickles are refused. A sealed file's content is authentic, but its
owner may have been careless, so headers have caps and every size is compared with the file's.
"""

from strongroom.data.formats.arrays import Array, Decoded, Stored
from strongroom.data.formats.detect import read_arrays

__all__ = ["Array", "Decoded", "Stored", "read_arrays"]
