"""A process that is asked twice to stop, while it listens."""

import os
import signal
import time

from eqxformer.training.signals import stop_requests

if __name__ == "__main__":
    with stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        print(asked.signal, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
