"""A worker in a process of its own: does so many jobs, and publishes what happens to them."""

import sys
import time

from jobqueue_broadcast import JobCompleted, JobProgress
from jobqueue_broadcast.backplane.redis import Publisher


def main(url: str, name: str, jobs: str, pause: str) -> None:
    with Publisher(url, timeout=1.0, patience=60.0) as publisher:
        for number in range(int(jobs)):
            job = f"{name}-{number}"
            for step in range(3):
                progress = JobProgress(job_id=job, worker_id=name, progress=step / 4)
                publisher.publish(progress)
            publisher.publish(JobCompleted(job_id=job, worker_id=name, result=number))
            time.sleep(float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
