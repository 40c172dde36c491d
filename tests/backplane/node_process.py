"""A node in a process of its own: says `ready`, and when the job `end` has ended, what it saw."""

import asyncio
import json
import sys
from collections import Counter
from hashlib import sha256

from jobqueue_broadcast.positions import Position
from tests.backplane.cluster import node, until


async def main(url: str, options: str) -> None:
    async with node(url, **json.loads(options)) as one:
        print("ready", flush=True)

        def ended() -> bool:
            job = one.broadcaster.job("end")
            return job is not None and job.status == "completed"

        await until(ended, within=600)
        history = one.broadcaster.history
        past = history.after(Position(history.epoch, history.floor))
        order = [(record.sequence, record.payload) for chunk in past for record in chunk]
        digest = sha256(b"".join(b"%d %b\n" % entry for entry in order)).hexdigest()
        stats = one.backplane.stats()
        seen = {
            "epoch": history.epoch,
            "events": len(order),
            "digest": digest,
            "completed": sorted(
                state.id for state in one.broadcaster.jobs if state.status == "completed"
            ),
            "twice": sum(count - 1 for count in Counter(one.order()).values()),
            "outages": stats.outages_total,
            "repeats": stats.repeats_total,
            "gaps": stats.trimmed_total + stats.flushed_total + stats.epochs_total,
        }
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
