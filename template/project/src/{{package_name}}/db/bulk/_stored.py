"""Values as a column stores them, which is the form that files hold and COPY FROM takes."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ARRAY, Dialect
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine


def stored_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type that the server has for a column: without domains, and without any TypeDecorator."""
    stored = type_.dialect_impl(dialect)
    while isinstance(stored, TypeDecorator | DOMAIN):
        inner = stored.data_type if isinstance(stored, DOMAIN) else stored.load_dialect_impl(dialect)
        stored = inner.dialect_impl(dialect)
    if isinstance(stored, ARRAY):
        stored = stored.adapt(type(stored), item_type=stored_type(stored.item_type, dialect))
    return stored


class StoredForm(TypeDecorator[Any]):
    """Type of values as a column of another type stores them: the server converts text, and None is NULL."""

    impl = NullType
    cache_ok = False

    def __init__(self, column_type: TypeEngine[Any]) -> None:
        """Create the stored form of a type."""
        super().__init__()
        self.column_type = column_type

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type on the server."""
        return stored_type(self.column_type, dialect)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Return the conversion of other values than text."""
        convert = super().bind_processor(dialect)
        return convert and (lambda value: value if value is None or isinstance(value, str) else convert(value))
