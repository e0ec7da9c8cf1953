"""Protocol Buffers' wire format: a key of field number and kind, then a number or a length and bytes."""


def number(field, value):
    return varint(field << 3) + varint(value)


def block(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field, content):
    return block(field, content.encode())


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(message):
    """Pairs of a field's number and its value: an int, or bytes."""
    at = 0

    def read_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(message):
        key = read_varint()
        if key & 7 == 0:
            yield key >> 3, read_varint()
            continue
        assert key & 7 == 2, f"field {key >> 3} is neither a number nor a block"
        length = read_varint()
        assert at + length <= len(message), f"field {key >> 3} is cut off"
        yield key >> 3, message[at : at + length]
        at += length


def only(message, field):
    """The value of a field that is there once."""
    found = [value for number, value in fields(message) if number == field]
    assert len(found) == 1, f"field {field} is there {len(found)} times"
    return found[0]
