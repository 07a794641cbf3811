#!/bin/sh
# psycopg 3.2.12 with its C implementation. A number that does not fit the type of a binary COPY becomes another one.
#
# Copy.set_types() names the types of the columns, and a binary COPY needs it for most tables. The dumper that it
# chooses writes the low bytes of an integer: 4294967301 goes into an int4 column as 5 and 70000 into an int2 column
# as 4464, where an INSERT of the same value fails with "out of range". A float beyond the range of float4 becomes
# infinity, and one below it zero. No error is raised on either side. (Dumped here by the transformer that
# Copy.write_row() calls; the bytes are those that would be sent.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.2.12'
cat > "$folder/try.py" <<'PYTHON'
import struct

from psycopg import postgres, pq
from psycopg.adapt import PyFormat, Transformer

print(pq.__impl__)
for name, layout, value in (
    ("int4", "!i", 2**32 + 5),
    ("int2", "!h", 70000),
    ("float4", "!f", 1e300),
    ("float4", "!f", 1e-300),
):
    transformer = Transformer()
    transformer.set_dumper_types([postgres.types[name].oid], pq.Format.BINARY)
    [sent] = transformer.dump_sequence([value], [PyFormat.BINARY])
    print(f"{name}: {value!r} is sent as {struct.unpack(layout, bytes(sent))[0]!r}")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
binary
int4: 4294967301 is sent as 5
int2: 70000 is sent as 4464
float4: 1e+300 is sent as inf
float4: 1e-300 is sent as 0.0
SEEN
diff "$folder/expected" "$folder/seen"
cat "$folder/seen"
