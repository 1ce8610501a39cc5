"""FUSE messages as bytes, written down once by hand (include/uapi/linux/fuse.h)."""

from __future__ import annotations

import struct
import sys

import pytest

from unionfs.engine import wire
from unionfs.types import Attr, decode_rdev, encode_rdev

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the bytes written down are little-endian"
)

ATTR = Attr(
    ino=0x1122334455667788,
    size=5,
    blocks=8,
    atime=1,
    mtime=2,
    ctime=-3,
    atimensec=4,
    mtimensec=5,
    ctimensec=6,
    mode=0o100644,
    nlink=1,
    uid=1000,
    gid=1001,
    rdev=0,
    blksize=4096,
    flags=0,
)
ATTR_BYTES = bytes.fromhex(
    "8877665544332211"  # ino
    "0500000000000000"  # size
    "0800000000000000"  # blocks
    "0100000000000000"  # atime
    "0200000000000000"  # mtime
    "fdffffffffffffff"  # ctime
    "04000000"  # atimensec
    "05000000"  # mtimensec
    "06000000"  # ctimensec
    "a4810000"  # mode
    "01000000"  # nlink
    "e8030000"  # uid
    "e9030000"  # gid
    "00000000"  # rdev
    "00100000"  # blksize
    "00000000"  # flags
)


def test_sizes_are_the_kernels() -> None:
    assert wire.IN_HEADER.size == 40
    assert wire.OUT_HEADER.size == 16
    assert wire.ENTRY_SIZE == 16 + 128
    assert wire.ATTR_SIZE == 16 + 104
    assert wire.NEGATIVE_REPLY.size == 16 + 128
    assert wire.SETATTR_IN.size == 88
    assert wire.MKNOD_IN.size == 16
    assert wire.MKDIR_IN.size == 8
    assert wire.RENAME2_IN.size == 16
    assert wire.READ_IN.size == wire.WRITE_IN.size == 40
    assert wire.INIT_OUT.size == 64
    assert wire.STATFS_OUT.size == 80
    assert wire.DIRENT.size == 24
    assert wire.DIRENTPLUS.size == 128 + 24
    assert wire.FALLOCATE_IN.size == 32
    assert wire.LSEEK_IN.size == 24
    assert wire.COPY_IN.size == 56
    assert wire.OPEN_OUT.size == 16
    assert wire.SETXATTR_IN.size == 16
    assert wire.CREATE_IN.size == 16
    assert len(ATTR_BYTES) == 88


def test_entry_reply() -> None:
    expected = bytes.fromhex(
        "90000000 00000000 0700000000000000"  # length, error, unique
        "8877665544332211 0000000000000000"  # nodeid, generation
        "0a00000000000000 0b00000000000000"  # entry and attr valid, seconds
        "01000000 02000000"  # and nanoseconds
    )
    assert wire.encode_entry(7, ATTR, (10, 1), (11, 2)) == expected + ATTR_BYTES


def test_attr_reply() -> None:
    expected = bytes.fromhex(
        "78000000 00000000 0800000000000000"  # length, error, unique
        "0900000000000000 03000000 00000000"  # valid, nanoseconds, padding
    )
    assert wire.encode_attr(8, ATTR, (9, 3)) == expected + ATTR_BYTES


def test_a_negative_entry_may_be_cached() -> None:
    reply = wire.encode_negative(7, (10, 1))
    expected = bytes.fromhex(
        "90000000 00000000 0700000000000000"
        "0000000000000000 0000000000000000"  # nodeid 0: no such name
        "0a00000000000000 0000000000000000"
        "01000000 00000000"
    )
    assert reply == expected + bytes(88)


def test_request_header() -> None:
    raw = bytes.fromhex(
        "31000000 01000000 0500000000000000 0200000000000000e8030000 e9030000 39300000 0000 0000"
    )
    length, opcode, unique, nodeid, uid, gid, pid, extlen, _ = wire.IN_HEADER.unpack(raw)
    assert (length, opcode, unique, nodeid) == (49, wire.Op.LOOKUP, 5, 2)
    assert (uid, gid, pid, extlen) == (1000, 1001, 12345, 0)


def test_error_reply() -> None:
    raw = bytes.fromhex("10000000 feffffff 0500000000000000")
    assert wire.OUT_HEADER.pack(16, -2, 5) == raw


def test_setattr_request() -> None:
    raw = struct.pack(
        "<IIQQQQQQIIIIIIII", 0x29, 0, 0, 4096, 0, 1, 2, 3, 11, 12, 13, 0o600, 0, 5, 6, 0
    )
    fields = wire.SETATTR_IN.unpack(raw)
    assert fields[0] == wire.FATTR_MODE | wire.FATTR_SIZE | wire.FATTR_MTIME
    assert (fields[3], fields[5], fields[6]) == (4096, 1, 2)
    assert (fields[8], fields[9], fields[11]) == (11, 12, 0o600)
    assert fields[13:15] == (5, 6)


def test_setattr_times_before_1970() -> None:
    raw = struct.pack("<IIQQQqqqIIIIIIII", 0x30, 0, 0, 0, 0, -1, -2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    fields = wire.SETATTR_IN.unpack(raw)
    assert fields[5:7] == (-1, -2)


def test_write_request_and_reply() -> None:
    raw = struct.pack("<QQIIQII", 0, 4096, 5, wire.WRITE_KILL_SUIDGID, 0, 0, 0)
    _, offset, size, flags, *_ = wire.WRITE_IN.unpack(raw)
    assert (offset, size, flags) == (4096, 5, 4)
    expected = bytes.fromhex("18000000 00000000 0600000000000000 05000000 00000000")
    assert wire.WRITE_REPLY.pack(24, 0, 6, 5, 0) == expected


def test_dirent() -> None:
    raw = bytes.fromhex("0500000000000000 4000000000000000 03000000 08000000")
    assert wire.DIRENT.pack(5, 64, 3, 8) == raw


def test_direntplus_is_an_entry_and_a_dirent() -> None:
    raw = wire.DIRENTPLUS.pack(ATTR.ino, 0, 10, 11, 1, 2, *ATTR, ATTR.ino, 64, 3, 8)
    assert raw[:128] == wire.encode_entry(0, ATTR, (10, 1), (11, 2))[16:]
    assert raw[128:] == wire.DIRENT.pack(ATTR.ino, 64, 3, 8)


def test_init_reply() -> None:
    raw = wire.INIT_OUT.pack(7, 45, 131072, 0x21, 64, 48, 1 << 20, 1, 256, 0, 32, 1)
    expected = bytes.fromhex(
        "07000000 2d000000 00000200 21000000 4000 3000 00001000 01000000 0001 000020000000 01000000"
    )
    assert raw == expected + bytes(24)


def test_rename2_request() -> None:
    raw = struct.pack("<QII", 9, 2, 0) + b"old\0new\0"
    parent, flags, _ = wire.RENAME2_IN.unpack_from(raw)
    assert (parent, flags, raw[16:].split(b"\0")[:2]) == (9, 2, [b"old", b"new"])


def test_batch_forget_request() -> None:
    raw = struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 5, 1, 6, 3)
    assert wire.BATCH_FORGET_IN.unpack_from(raw) == (2, 0)
    assert list(wire.FORGET_ONE.iter_unpack(raw[8:])) == [(5, 1), (6, 3)]


@pytest.mark.parametrize(("length", "whole"), [(0, 0), (1, 8), (8, 8), (9, 16), (24 + 255, 280)])
def test_records_are_padded_to_eight(length: int, whole: int) -> None:
    assert wire.padded(length) == whole


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 255), (259, 65_537), (4095, (1 << 20) - 1)])
def test_device_numbers_in_the_kernels_encoding(device: tuple[int, int]) -> None:
    import os

    number = os.makedev(*device)
    assert decode_rdev(encode_rdev(number)) == number


def test_the_kernels_encoding_of_a_device() -> None:
    import os

    assert encode_rdev(os.makedev(8, 1)) == 0x801
    assert encode_rdev(os.makedev(1, 0x12345)) == 0x12300145
