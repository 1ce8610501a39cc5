"""The only place of the runtime with ctypes, system call numbers and kernel structures."""
