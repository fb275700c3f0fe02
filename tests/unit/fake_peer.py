"""A peer that behaves as its second argument says, for `test_loadtest_peers.py`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from shoal_loadtest.peers.workers.protocol import Peer, Settings, serve


class Fake(Peer):
    def __init__(self, place: Path, mode: str) -> None:
        super().__init__(place)
        self.mode = mode

    def start(self) -> Settings:
        (self.place / "file").write_text("own")
        print("what a peer prints is not taken for an answer")  # noqa: T201
        if self.mode == "cannot":
            raise RuntimeError("no broker listens") from OSError("refused")
        if self.mode == "litters":  # a service that detaches itself, and one whose environment says nothing
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            subprocess.Popen(["sleep", "600"], start_new_session=True, env={"PATH": os.environ["PATH"]})
        return {"mode": self.mode, "shut off": str(self.shut_off)}

    def fan_out(self, n: int) -> int:
        if self.mode == "crashes":
            sys.stderr.write("Segmentation fault, perhaps\n")
            sys.stderr.flush()
            os._exit(3)
        if self.mode == "hangs":
            time.sleep(600)
        return n - 1 if self.mode == "loses" else n

    def one(self) -> None:
        time.sleep(0.001)

    def stop(self) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[2] == "rubbish":
        sys.stdin.readline()
        sys.stdout.write("this is no JSON\n")
        sys.stdout.flush()
        time.sleep(600)
    serve(Fake(Path(sys.argv[1]), sys.argv[2]))
