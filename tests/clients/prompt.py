"""Types into `godseye query` on a terminal of its own, and fails when it does not show what a person must see.

Arguments: the binary, the server's address. Only the standard library. Not here: which offers there are for a word
(`src/complete.rs`).
"""

import os
import pty
import re
import select
import signal
import sys
import time

# A test that waits longer hangs.
HANG_S = 60

# Runs for hours in little memory.
SLOW = (
    f"WITH t AS (SELECT column1 AS x FROM (VALUES {', '.join(f'({x})' for x in range(500))})), u AS (SELECT a.x FROM t a JOIN t b ON a.x % 2 = b.x % 2) "
    "SELECT count(*) FROM u a JOIN u b ON a.x % 2 = b.x % 2;"
)


class Terminal:
    def __init__(self, binary, server):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(binary, [binary, "query", "--server", server])
        self.seen = ""

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def ask(self, keys):
        """Types at a prompt: what is typed before it is there is not edited."""
        self.see("godseye> ")
        self.type(keys)

    def see(self, pattern):
        """Waits until the pattern was drawn after what was seen before."""
        end = time.monotonic() + HANG_S
        while True:
            # Colours and cursor movements are how it is drawn, not what.
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.seen)
            found = re.search(pattern, plain)
            if found:
                self.seen = plain[found.end():]
                return
            left = end - time.monotonic()
            if left <= 0 or not self.read(left):
                sys.exit(f"`{pattern}` did not come after {plain!r}")

    def read(self, wait_s):
        ready, _, _ = select.select([self.fd], [], [], wait_s)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the terminal is gone with its process
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)

    def leave(self, keys):
        self.type(keys)
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        sys.exit(f"it does not end on {keys!r}")


def main():
    binary, server = sys.argv[1:]
    ctrl_c, ctrl_d, up, tab = "\x03", "\x04", "\x1b[A", "\t"

    one = Terminal(binary, server)
    one.see(r"has \d+ tables")
    # Two lines are one statement.
    one.ask("SELECT 40 +\n")
    one.type("2 AS answer;\n")
    one.see("answer")
    one.see("42")
    one.see("1 row in")
    # An error is shown, and the next statement is asked.
    one.ask("SELECT nothing FROM nowhere;\n")
    one.see("nowhere")
    # Tables, columns and the keys of attributes complete.
    one.ask("SELECT service_n" + tab + ", attributes['http.r" + tab + " AS route FROM spa" + tab + tab)
    one.see("span_events")
    one.type("s;\n")
    one.see("shop")
    one.see("/checkout")
    one.ask("\\d\n")
    one.see("metric_histograms")
    one.ask("\\d logs\n")
    one.see("severity_number")
    one.ask("\\d nonsense\n")
    one.see("there is no table `nonsense`")
    one.ask("\\x\n")
    one.see("one line per cell")
    one.ask("SELECT 'a' AS letter;\n")
    one.see(r"letter │ a")
    # A question is stopped, and the prompt goes on.
    one.ask(SLOW + "\n")
    one.see("the server is working; Ctrl-C stops it")
    one.type(ctrl_c)
    one.see("stopped")
    # What was typed is forgotten, too.
    one.ask("SELECT nonsense" + ctrl_c)
    one.ask("SELECT 'still here' AS x;\n")
    one.see("x │ still here")
    if (code := one.leave(ctrl_d)) != 0:
        sys.exit(f"Ctrl-D ends with {code}")

    # The history is there the next time.
    two = Terminal(binary, server)
    two.see(r"has \d+ tables")
    two.ask(up)
    two.see("SELECT 'still here' AS x;")
    two.type("\n")
    two.see("still here")
    if (code := two.leave("\\q\n")) != 0:
        sys.exit(f"\\q ends with {code}")

    # Without a server there is no prompt.
    three = Terminal(binary, "127.0.0.1:1")
    three.see("is `godseye serve` running")


main()
