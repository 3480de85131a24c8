"""The table of a run's processes: what each last said of itself, and what follows for all of them."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from lsdali.errors import BROKEN, FINISHED, STOPPED


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: the state that a process reports about once a second."""

    rank: int
    host: str
    step: int = 0
    doing: str = ""
    count: int = 0  # how often it has got on; all ranks do the same things in the same order
    still: int = 0  # its own ticks, about a second each, since it last got on; 0 before the first step
    stop: str | None = None  # the signal that it was sent
    bound: int | None = None  # it promises to begin no step from this number on before it is told `Verdict.at`
    killed: int = 0  # processes that the kernel has killed in its control group for want of memory
    left: int | None = None  # its exit status


@dataclass(frozen=True, slots=True)
class Verdict:
    """What every process must do next."""

    stop: str | None = None  # a rank was sent this signal: give a `bound`
    at: int | None = None  # stop at the first boundary between steps that is not below this number
    end: str | None = None  # end now; the cause, empty where it has been printed already
    status: int = FINISHED
    stacks: tuple[int, ...] = ()  # these ranks print where they stand


@dataclass
class ProcessTable:
    """Kept by rank 0; safe to use from several threads.

    Time is counted in ticks, because a suspended process (SIGSTOP, scontrol suspend) does not tick: a run that is
    suspended as a whole has not stood still when it wakes.
    """

    world: int
    limit: int  # ticks without progress, or without a word, after which a rank stands still
    beats: dict[int, Beat] = field(default_factory=dict)
    silent: dict[int, int] = field(default_factory=dict)  # ticks since a rank was last heard
    lost: dict[int, int] = field(default_factory=dict)  # ticks since a rank's connection ended without a last word
    verdict: Verdict = Verdict()
    lock: threading.RLock = field(default_factory=threading.RLock)

    def hear(self, beat: Beat) -> Verdict:
        """Take in a beat; return what every process is to do.

        A verdict is looked for where the beat may change it, and at each tick: to look through all ranks at each beat
        of each of 1,024 would take rank 0 most of a second, every second.
        """
        with self.lock:
            self.beats[beat.rank], self.silent[beat.rank] = beat, 0
            if beat.left is not None or beat.stop or beat.bound is not None or beat.still > self.limit:
                self._judge()
            return self.verdict

    def lose(self, rank: int) -> None:
        """Note that the connection of a rank has ended."""
        with self.lock:
            if rank in self.beats and self.beats[rank].left is None:
                self.lost.setdefault(rank, 0)

    def tick(self) -> None:
        with self.lock:
            for counts in (self.silent, self.lost):
                for rank in counts:
                    counts[rank] += 1
            self._judge()

    @property
    def empty(self) -> bool:
        """Whether every rank but the first has left or is lost."""
        with self.lock:
            return all(beat.left is not None or rank in self.lost for rank, beat in self.beats.items() if rank)

    def _judge(self) -> None:
        if self.verdict.end is None:
            self.verdict = self._ended() or self._stopped()

    def _stopped(self) -> Verdict:
        stop = next((beat.stop for beat in self.beats.values() if beat.stop is not None), None)
        bounds = [beat.bound for beat in self.beats.values() if beat.bound is not None]
        if self.verdict.at is not None:
            return self.verdict
        return Verdict(stop=stop, at=max(bounds) if len(bounds) == self.world else None)

    def _ended(self) -> Verdict | None:
        """A verdict that ends the run, with its cause."""
        failed = [beat for beat in self.beats.values() if beat.left not in (None, FINISHED, STOPPED)]
        if failed:
            return Verdict(end="", status=failed[0].left or BROKEN)
        gone = [self.beats[rank] for rank, ticks in self.lost.items() if ticks >= 2]
        if gone:
            causes = [f"{named(beat)} has died {progress(beat)}: {self._cause(beat)}" for beat in gone]
            return Verdict(end="; ".join(causes), status=BROKEN)
        there = [beat for rank, beat in self.beats.items() if beat.left is None and rank not in self.lost]
        mute = [beat for beat in there if self.silent[beat.rank] > self.limit]
        if mute:
            return Verdict(end=f"no sign of life for {self.limit} s from {listed(mute)}", status=BROKEN)
        if len(there) == self.world and all(beat.still > self.limit for beat in there):
            least = min(beat.count for beat in there)
            behind = [beat for beat in there if beat.count == least]
            sentence = f"no progress for {self.limit} s: {listed(behind)}"
            return Verdict(end=sentence, status=BROKEN, stacks=tuple(beat.rank for beat in behind))
        return None

    def _cause(self, beat: Beat) -> str:
        if any(other.killed for other in self.beats.values() if other.host == beat.host):
            return "the kernel killed it because its control group has no memory left"
        return "killed, or it ended without a word"


def named(beat: Beat) -> str:
    return f"rank {beat.rank} on {beat.host}"


def progress(beat: Beat) -> str:
    return f"at step {beat.step} ({beat.doing})"


def listed(beats: Iterable[Beat]) -> str:
    return ", ".join(f"{named(beat)} {progress(beat)}" for beat in beats)
