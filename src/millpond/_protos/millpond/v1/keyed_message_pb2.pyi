from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class KeyedMessage(_message.Message):
    __slots__ = ("instance_name", "cache_key", "message")
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    instance_name: str
    cache_key: str
    message: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, instance_name: _Optional[str] = ..., cache_key: _Optional[str] = ..., message: _Optional[_Iterable[bytes]] = ...) -> None: ...
