"""Messages of each kind that RFC 4475 lists, by its section, addressed to a user of the lab: some valid, most not."""

from __future__ import annotations

_START = b"INVITE sip:carol@198.51.100.1 SIP/2.0\r\n"
_VIA = b"Via: SIP/2.0/UDP 203.0.113.2:9;branch=z9hG4bKtorture\r\n"
_FROM = b"From: <sip:x@203.0.113.2>;tag=1\r\n"
_TO = b"To: <sip:carol@198.51.100.1>\r\n"
_ID = b"Call-ID: torture\r\n"
_CSEQ = b"CSeq: 1 INVITE\r\n"
_PLAIN = _VIA + _FROM + _TO + _ID + _CSEQ
_SDP = b"v=0\r\no=x 1 1 IN IP4 203.0.113.2\r\ns=-\r\nc=IN IP4 203.0.113.2\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"


def _with(*lines: bytes, start: bytes = _START, body: bytes = b"", plain: bytes = _PLAIN) -> bytes:
    """A request with further header lines."""
    return start + plain + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _method(method: bytes, *lines: bytes, uri: bytes = b"sip:carol@198.51.100.1") -> bytes:
    plain = _PLAIN.replace(b"1 INVITE", b"1 " + method)
    return _with(*lines, start=method + b" " + uri + b" SIP/2.0\r\n", plain=plain)


def _instead(old: bytes, new: bytes) -> bytes:
    """The plain request with one part replaced."""
    whole = _with()
    assert old in whole
    return whole.replace(old, new)


_MESSAGES: dict[str, bytes] = {
    # Valid, and strange.
    "3.1.1.1 white space": _START
    + b"v:  SIP  / 2.0  / UDP\r\n  203.0.113.2:9 ;branch\t=\r\n\tz9hG4bKws\r\n"
    + b"FROM\t:\r\n  <sip:x@203.0.113.2> ;  tag = 1\r\n"
    + b"TO :\r\n sip:carol@198.51.100.1\r\nCall-ID:\r\n torture\r\nCSEQ: 0001\r\n INVITE\r\ns :\r\n"
    + b"UnknownHeaderWithUnusualValue: ;;,,;;,;\r\nMax-Forwards: 0068\r\n\r\n",
    "3.1.1.2 wide range of characters": _method(
        b"!interesting-Method01_*+`.%indeed'~",
        b"extensionHeader-!.%*+_`'~:\xef\xbb\xbf",
    ),
    "3.1.1.3 escapes": _with(start=b"INVITE sip:sips%3Acarol%40203.0.113.2@198.51.100.1;other=%61 SIP/2.0\r\n"),
    "3.1.1.4 escaped nulls": _method(
        b"REGISTER",
        b"Contact: <sip:%00@203.0.113.2>",
        b"Contact: <sip:%00%00@203.0.113.2>",
    ),
    "3.1.1.5 escapes that are none": _method(b"RE%47IST%45R", b"Contact: <sip:alias1@203.0.113.2>"),
    "3.1.1.6 no space between name and URI": _instead(_FROM, b'From: "caller"<sip:x@203.0.113.2>;tag=1\r\n'),
    "3.1.1.7 long values": _with(
        b"Unknown-" + b"Long" * 200 + b"-Name: " + b"value" * 200,
        *(b"Via: SIP/2.0/TCP 203.0.113.%d;branch=z9hG4bK%d" % (n % 250, n) for n in range(30)),
        b"Contact: <sip:" + b"user" * 100 + b"@203.0.113.2>",
    ),
    "3.1.1.8 a second message in the datagram": _with(b"Content-Length: 0") + _with(b"Content-Length: 150"),
    "3.1.1.9 semicolon in the user": _method(b"OPTIONS", uri=b"sip:user;par=u%40203.0.113.2@198.51.100.1"),
    "3.1.1.10 transports": _method(
        b"OPTIONS",
        b"Via: SIP/2.0/SCTP h;branch=z9hG4bK1",
        b"Via: SIP/2.0/UNKNOWN h;branch=z9hG4bK2",
        b"Via: SIP/2.0/TLS h",
    ),
    "3.1.1.11 several parts": _with(
        b"Content-Type: multipart/mixed;boundary=7a9cbec02ceef655",
        b"Content-Length: 94",
        body=b"--7a9cbec02ceef655\r\nContent-Type: text/plain\r\n\r\n\x00\x80\xff\r\n--7a9cbec02ceef655--",
    ),
    "3.1.1.12 unusual reason": b"SIP/2.0 200 = 2**3 * 5**2 \xd0\xbd\xd0\xbe\r\n" + _PLAIN + b"\r\n",
    "3.1.1.13 no reason": b"SIP/2.0 100 \r\n" + _PLAIN + b"\r\n",
    # Invalid.
    "3.1.2.1 separators": _with(b'Contact: "Joe" <sip:joe@203.0.113.2>;;;;,,;', start=_START).replace(
        b"tag=1", b"tag=1;;,;,,"
    ),
    "3.1.2.2 length too large": _with(b"Content-Length: 9999", body=b"short"),
    "3.1.2.3 negative length": _with(b"Content-Length: -999"),
    "3.1.2.4 large numbers in a request": _with(
        b"Expires: 10000000000000000000000000",
        b"Max-Forwards: 300",
        plain=_PLAIN.replace(b"CSeq: 1", b"CSeq: 36893488147419103232"),
    ),
    "3.1.2.5 large numbers in a response": b"SIP/2.0 503 Busy\r\n"
    + _PLAIN.replace(b"CSeq: 1", b"CSeq: 9292394834772304023312")
    + b'Retry-After: 949302838503028349304023988\r\nWarning: 1812 overture "x"\r\n\r\n',
    "3.1.2.6 open quote": _instead(_TO, b'To: "Mr. J. <sip:carol@198.51.100.1>\r\n'),
    "3.1.2.7 URI in brackets": _with(start=b"INVITE <sip:carol@198.51.100.1> SIP/2.0\r\n"),
    "3.1.2.8 space in the URI": _with(start=b"INVITE sip:carol@198.51.100.1; lr SIP/2.0\r\n"),
    "3.1.2.9 several spaces": _with(start=b"INVITE  sip:carol@198.51.100.1  SIP/2.0\r\n"),
    "3.1.2.10 space at the end": _with(start=b"INVITE sip:carol@198.51.100.1 SIP/2.0  \r\n"),
    "3.1.2.11 headers in the URI": _with(
        start=b"INVITE sip:carol@198.51.100.1?Route=%3Csip:203.0.113.77%3E SIP/2.0\r\n",
    ),
    "3.1.2.12 time zone": _with(b"Date: Fri, 01 Jan 2010 16:00:00 EST"),
    "3.1.2.13 parameters of an address without brackets": _method(
        b"REGISTER",
        b"Contact: sip:user@203.0.113.2?Route=%3Csip:h%3E",
    ),
    "3.1.2.14 spaces in an address": _instead(_TO, b'To: "Watson, Thomas" < sip:carol@198.51.100.1 >\r\n'),
    "3.1.2.15 a name without quotes": _instead(_FROM, b"From: Bell, Alexander <sip:x@203.0.113.2>;tag=1\r\n"),
    "3.1.2.16 another version": _with(start=_START.replace(b"2.0", b"7.0")),
    "3.1.2.17 methods differ": _with(plain=_PLAIN.replace(b"1 INVITE", b"8 OPTIONS")),
    "3.1.2.18 methods differ, unknown": _with(
        start=_START.replace(b"INVITE", b"NEWMETHOD"), plain=_PLAIN.replace(b"1 INVITE", b"8 OTHERMETHOD")
    ),
    "3.1.2.19 large status": b"SIP/2.0 4294967301 better not break the receiver\r\n" + _PLAIN + b"\r\n",
    # Transactions.
    "3.2.1 branch of nothing": _method(b"OPTIONS").replace(b"branch=z9hG4bKtorture", b"branch=z9hG4bK"),
    # Applications.
    "3.3.1 headers missing": _START + _CSEQ + b"\r\n",
    "3.3.2 unknown scheme": _with(start=b"INVITE nobodyKnowsThisScheme:totallyopaque SIP/2.0\r\n"),
    "3.3.3 known scheme": _with(start=b"INVITE soap.beep://192.0.2.103:3002 SIP/2.0\r\n"),
    "3.3.4 unknown schemes in headers": _instead(_TO, b"To: isbn:2983792873\r\n"),
    "3.3.5 unknown extensions": _with(b"Require: nothingSupportsThis", b"Proxy-Require: noProxiesSupportThis"),
    "3.3.6 unknown content": _with(b"Content-Type: application/unknownformat", b"Content-Length: 7", body=b"<audio>"),
    "3.3.7 unknown authorization": _method(b"REGISTER", b"Authorization: NoOneKnowsThisScheme opaque-data=here"),
    "3.3.8 headers twice": _with(plain=_PLAIN + _PLAIN.replace(b"Call-ID: torture", b"Call-ID: other")),
    "3.3.9 two lengths": _with(b"Content-Length: 3", b"Content-Length: 300", body=b"abc"),
    "3.3.10 response to a broadcast address": b"SIP/2.0 200 OK\r\n"
    + _PLAIN.replace(b"203.0.113.2:9", b"255.255.255.255")
    + b"\r\n",
    "3.3.11 no hops left": _method(b"OPTIONS", b"Max-Forwards: 0"),
    "3.3.12 parameters in Contact": _method(b"REGISTER", b"Contact: sip:+19725552222@203.0.113.2;unknownparam"),
    "3.3.13 parameters in brackets": _method(b"REGISTER", b"Contact: <sip:+19725552222@203.0.113.2;unknownparam>"),
    "3.3.14 escaped headers in Contact": _method(b"REGISTER", b"Contact: <sip:user@203.0.113.2?Route=%3Csip:h%3E>"),
    "3.3.15 Accept without SDP": _with(b"Accept: text/nobodyKnowsThis", b"Content-Type: application/sdp", body=_SDP),
    # Old clients.
    "3.4.1 RFC 2543": _START
    + b"Via: SIP/2.0/UDP 203.0.113.2\r\nFrom: <sip:x@203.0.113.2>\r\n"
    + _TO
    + _ID
    + b"CSeq: 56 INVITE\r\n\r\n"
    + _SDP,
    # Not of the RFC.
    "a header of 60,000 octets": _with(b"X: " + b"x" * 60_000),
    "nulls": b"\x00" * 1000,
    "no SIP at all": b"\xff\xfe" * 500 + b" SIP/2.0\r\n\r\n",
}

MESSAGES = {
    kind: message.replace(b"torture", b"torture%d" % number) for number, (kind, message) in enumerate(_MESSAGES.items())
}
"""By kind; each a transaction and a call of its own."""
