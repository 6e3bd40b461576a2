"""A mail server to send alerts to: aiosmtpd on a free port, with a certificate that its own authority signed.

Prints {"port", "ca"} in one line when it listens, keeps each message as a JSON file in DIR, and ends when its
standard input does. Not here: what the messages must be (see alerting/tests/email.rs).
"""

import argparse
import asyncio
import email
import email.policy
import json
import logging
import os
import pathlib
import ssl
import sys

import trustme
from aiosmtpd.smtp import SMTP, AuthResult


class Keeper:
    """Refuses the first `--later` messages for a moment and recipients called `nobody` for good.

    Of the first `--lost` messages it never says that it kept them.
    """

    def __init__(self, folder, later, lost):
        self.folder = folder
        self.later = later
        self.lost = lost
        self.kept = 0

    async def handle_MAIL(self, server, session, envelope, address, options):
        if self.later > 0:
            self.later -= 1
            return "451 4.3.0 come back later"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.kept += 1
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        message = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": server.transport.get_extra_info("ssl_object") is not None,
            "login": session.auth_data and session.auth_data.login.decode(),
            "headers": [[name.lower(), str(value)] for name, value in mail.items()],
            "parts": {part.get_content_type(): part.get_content() for part in mail.walk() if not part.is_multipart()},
        }
        path = self.folder / f"{self.kept:08}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(message))
        os.rename(part, path)
        if self.lost > 0:
            self.lost -= 1
            server.transport.abort()
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    good = (data.login, data.password) == (b"me", b"secret")
    return AuthResult(success=good, handled=False, auth_data=data if good else None)


async def serve(arguments):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    ca = arguments.dir / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    keeper = Keeper(arguments.dir, arguments.later, arguments.lost)
    options = {"hostname": "mail.test", "enable_SMTPUTF8": True}
    if arguments.tls == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    if arguments.auth:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": arguments.tls == "starttls"}
    loop = asyncio.get_running_loop()
    implicit = context if arguments.tls == "implicit" else None
    server = await loop.create_server(lambda: SMTP(keeper, loop=loop, **options), "127.0.0.1", 0, ssl=implicit)
    print(json.dumps({"port": server.sockets[0].getsockname()[1], "ca": str(ca)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--dir", type=pathlib.Path, required=True)
parser.add_argument("--tls", choices=["none", "starttls", "implicit"], default="none")
parser.add_argument("--auth", action="store_true", help="demand the login me:secret")
parser.add_argument("--later", type=int, default=0, help="messages to refuse for a moment first")
parser.add_argument("--lost", type=int, default=0, help="messages to keep without an answer first")
# Clients that break off are what the tests are about.
logging.disable(logging.CRITICAL)
asyncio.run(serve(parser.parse_args()))
