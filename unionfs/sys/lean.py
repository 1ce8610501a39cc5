"""ctypes without what takes longer to load than it does: every start waits for it.

``ctypes`` makes thirty types and as many helpers around ``_ctypes``; ours need these. The same
names mean the same (The Python Standard Library, "ctypes").
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes as ctypes
    from typing import Any

__all__ = ["ctypes"]


class _Lean:
    """Stands for the module."""

    c_char: Any
    c_int: Any
    c_uint: Any
    c_ulong: Any

    def __init__(self) -> None:
        import _ctypes

        simple: Any = _ctypes._SimpleCData
        pointer: Any = _ctypes.CFuncPtr
        load: Any = _ctypes.dlopen
        for name, code in (
            *(("c_char", "c"), ("c_char_p", "z"), ("c_int", "i"), ("c_uint", "I")),
            *(("c_long", "l"), ("c_ulong", "L"), ("c_int64", "q")),
        ):
            setattr(self, name, type(simple)(name, (simple,), {"_type_": code}))
        self.c_uint32 = self.c_uint
        self.c_size_t = self.c_ulong
        self.addressof, self.get_errno = _ctypes.addressof, _ctypes.get_errno
        body = {
            "_flags_": _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO,
            "_restype_": self.c_int,
        }
        function = type(pointer)("_Function", (pointer,), body)

        class CDLL:
            """A loaded library; its functions are attributes, made when first asked for."""

            def __init__(self, name: str | None, use_errno: bool) -> None:
                self._handle = load(name, 0)

            def __getattr__(self, name: str) -> Any:
                found = self.__dict__[name] = function((name, self))
                return found

        self.CDLL = CDLL

    def create_string_buffer(self, init: int | bytes, size: int | None = None) -> Any:
        """An array of characters."""
        if isinstance(init, int):
            return (self.c_char * init)()
        buffer = (self.c_char * (len(init) + 1 if size is None else size))()
        buffer.value = init
        return buffer


if not TYPE_CHECKING:
    try:
        ctypes = _Lean()
    except (ImportError, AttributeError):  # another Python than CPython
        import ctypes
