"""The only place with ctypes, ioctl numbers and kernel struct layouts (besides ``engine/wire.py``).

One thin function per system call; every function raises :class:`OSError`
with the kernel's errno and nothing else.
"""
