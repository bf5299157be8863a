"""A queue of events in simulated time, and a small bank simulation that runs on it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Action = Callable[[], None]


@dataclass(order=True)
class Event:
    time: float
    order: int
    action: Action = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Simulator:
    """Runs events in the order of their times; events of the same time in the order of scheduling."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[Event] = []
        self._counter = itertools.count()

    def schedule(self, delay: float, action: Action) -> Event:
        if delay < 0:
            raise ValueError(f"delay must not be negative, got {delay}")
        event = Event(self.now + delay, next(self._counter), action)
        heapq.heappush(self._events, event)
        return event

    def cancel(self, event: Event) -> None:
        event.cancelled = True

    def run(self, until: float = float("inf")) -> int:
        """Runs events until the given time and returns how many ran."""
        n_run = 0
        while self._events and self._events[0].time <= until:
            event = heapq.heappop(self._events)
            if event.cancelled:
                continue
            self.now = event.time
            event.action()
            n_run += 1
        return n_run


class Bank:
    """Customers arrive at random, wait for one of the tellers, and are served."""

    def __init__(self, simulator: Simulator, n_tellers: int, seed: int = 0) -> None:
        self.simulator = simulator
        self.free_tellers = n_tellers
        self.waiting: list[float] = []
        self.wait_times: list[float] = []
        self.random = random.Random(seed)

    def open(self, n_customers: int, arrivals_per_minute: float) -> None:
        arrival = 0.0
        for _ in range(n_customers):
            arrival += self.random.expovariate(arrivals_per_minute)
            self.simulator.schedule(arrival, self.arrive)

    def arrive(self) -> None:
        self.waiting.append(self.simulator.now)
        self.serve_next()

    def serve_next(self) -> None:
        if not self.waiting or self.free_tellers == 0:
            return
        self.free_tellers -= 1
        arrived_at = self.waiting.pop(0)
        self.wait_times.append(self.simulator.now - arrived_at)
        self.simulator.schedule(self.random.uniform(1.0, 4.0), self.finish)

    def finish(self) -> None:
        self.free_tellers += 1
        self.serve_next()


def percentiles(values: list[float], *fractions: float) -> Iterator[float]:
    ordered = sorted(values)
    for fraction in fractions:
        # The last index is the maximum, so the fraction 1.0 is allowed.
        index = min(int(fraction * len(ordered)), len(ordered) - 1)
        yield ordered[index]


if __name__ == "__main__":
    for n_tellers in (2, 3, 4):
        simulator = Simulator()
        bank = Bank(simulator, n_tellers)
        bank.open(n_customers=500, arrivals_per_minute=0.9)
        n_events = simulator.run()
        median, worst = percentiles(bank.wait_times, 0.5, 1.0)
        print(f"{n_tellers} tellers: {n_events} events, median wait {median:.1f}, worst {worst:.1f} minutes")
