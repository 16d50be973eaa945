"""One end of a call, on a node: ``python3 - DIRECTORY NAME ADDRESS INTERFACE SIP FIRST LAST TONE OTHERS-TONE [URI]``.

With a URI it calls, talks for three seconds and hangs up; without, it creates DIRECTORY/ready and waits to be called.
Prints what it heard, as JSON.
"""

import json
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

from dnat.lab.phone import Phone, PhoneSettings
from dnat.lab.tone import listen
from dnat.system.netns import instance_name
from dnat.types import PortRange

PATIENCE = 150.0
TALK = 3.0

directory, name, address, interface, sip, first, last, tone, others_tone, *uri = sys.argv[1:]
settings = PhoneSettings(
    name=name,
    namespace=instance_name(),
    address=IPv4Address(address),
    sip_port=int(sip),
    rtp=PortRange(int(first), int(last)),
    directory=Path(directory),
    tone=int(tone),
    interface=interface,
)
phone = Phone(settings)
settings.directory.mkdir(parents=True, exist_ok=True)
try:
    phone.start(PATIENCE)
    if uri:
        call = phone.call(uri[0], timeout=PATIENCE)
        time.sleep(TALK)
        phone.hang_up(call, PATIENCE)
    else:
        (settings.directory / "ready").touch()
        call = phone.await_event(lambda event: event.type == "CALL_CLOSED", "a call", timeout=PATIENCE).call_id
    report = phone.report(call, PATIENCE)
finally:
    phone.stop()
heard = listen(report.recording, int(others_tone))
print(json.dumps({"seconds": heard.seconds, "sent": report.sent, "received": report.received}))
