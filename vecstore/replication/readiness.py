"""Whether a store could take over now: facts in, checks out.

A check says what was found, what is asked, and what to do. It is *ok* where it is known to be as it should, *warn*
where it is known not to be, and *unknown* where nobody can tell: no silence is taken for a yes. A store is ready where
every check is ok. Nothing here decides anything: a promotion asks none of it, and a store that is not ready can be
promoted. What is compared with the primary's is what the primary last said, however long ago: the question is asked
when it is gone.

Pure: the time is given, nothing is read or sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .facts import Check, Here, Known, State

__all__ = ["is_ready", "judge", "worst"]

CERTIFICATE_DAYS_MIN = 14.0
MEMORY_SHARE_MAX = 0.9
"""Of its budget that a store may fill; beyond, it would soon refuse writes."""
BUSY_SHARE_MAX = 0.8
"""Of the processors here that the primary's load may keep busy."""
UNINDEXED_SHARE_MAX = 0.5
"""Of the rows that a shard may hold without an index before upserts wait."""
DAY_S = 86_400.0
_MIB = 1 << 20


def judge(here: Here, primary: Known | None) -> tuple[Check, ...]:
    """Return every check of a store: of a standby whether it could take over, of any other what it needs to go on.

    Parameters
    ----------
    primary
        What the store's primary last said; None where it never did.
    """
    if here.described.get("role") == "primary":
        return (_primary(here), *_standbys(here), *_gpus(here), *_alone(here))
    compared = (_memory, _processors, _device, _options, _tokens, _version)
    return (
        _state(here),
        *_epoch(here),
        _lag(here),
        *_contents(here),
        *(check(here, primary) for check in compared),
        *_alone(here, primary),
    )


def is_ready(checks: Sequence[Check]) -> bool:
    """Return whether every check is ok."""
    return all(check.state == "ok" for check in checks)


def worst(checks: Sequence[Check]) -> State:
    """Return "warn" where one is, else "unknown" where one is, else "ok"."""
    states = {check.state for check in checks}
    return "warn" if "warn" in states else "unknown" if "unknown" in states else "ok"


def _alone(here: Here, primary: Known | None = None) -> Iterator[Check]:
    """Yield what concerns this server alone, and what its archive is beside the primary's."""
    yield _disk(here)
    yield _indexes(here)
    yield _archive(here, primary)
    yield _certificates(here)
    yield _start(here)


# -- what it is --------------------------------------------------------------------------------------------------------


def _state(here: Here) -> Check:
    found = here.described
    role, status = str(found.get("role", "")), str(found.get("status", ""))
    problem = found.get("problem") or found.get("reason") or ""
    rejoin = found.get("rejoin")
    text = f"{role}, {status}" + (f": {problem}" if problem else "")
    asked = "a standby that holds a history, and whose contents stay as they are"
    advice = ""
    if role != "standby":
        advice = "ask a standby" if role != "fenced" else _FORGOTTEN if _forgotten(here) else _REJOIN
    elif rejoin is not None:
        text, advice = f"{text}, rejoin in phase {rejoin.get('phase', '')}", "wait until the rejoin has ended"
    elif status not in ("following", "dialling"):
        advice = "`vecstore status` has its alarms: a store that stopped, or whose contents are being replaced, waits"
    elif found.get("held_back"):
        text, advice = f"{text}, records wait: {found['held_back']}", "make room, or wait until indexes are built"
    elif not found.get("epochs"):
        text, advice = f"{text}, nothing of the log yet", "wait until it has what the primary has"
    return Check("state", "warn" if advice else "ok", text, asked, advice)


_REJOIN = "`vecstore rejoin` makes a standby of it"
_FORGOTTEN = (
    "`vecstore history` of each store; promote the one with the longest, with --force where it is fenced, and let the "
    "others rejoin it"
)


def _forgotten(here: Here) -> int:
    return int(here.described.get("forgotten_epoch") or 0)


def _epoch(here: Here) -> Iterator[Check]:
    """Yield that nobody holds the epoch that counts, where that is so: this store wrote it, and its disk went back."""
    number = _forgotten(here)
    if number:
        found = f"this store wrote epoch {number}, and its disk does not know it: nobody writes"
        yield Check("epoch", "warn", found, "the epoch that it wrote is in its log", _FORGOTTEN)


def _lag(here: Here) -> Check:
    found = here.described
    lag, seen_lsn = found.get("lag") or {}, int(found.get("seen_lsn") or 0)
    records, seconds = int(lag.get("records", 0)), float(lag.get("seconds", 0.0))
    is_following, is_near = found.get("status") == "following", seconds <= here.lag_s_max
    asked = f"at most {here.lag_s_max:.3g} s behind"
    if not seen_lsn:
        text = f"the primary was not heard since this server began, at most {_seconds(seconds)} behind"
        return Check("lag", "unknown", text, asked, _GONE)
    if is_following or records:
        text = f"{records:,} records, {_seconds(seconds)} behind"
        advice = "" if is_near else "see `vecstore_link_connected`; does it apply slower than records come?"
        return Check("lag", "ok" if is_near else "warn", text, asked, advice)
    text = f"all that the primary had {_seconds(seconds)} ago, at LSN {seen_lsn:,}"
    if is_near:
        return Check("lag", "ok", text, asked)
    return Check("lag", "unknown", f"{text}; what was written since, nobody here knows", asked, _GONE)


_GONE = "is the primary gone? A promotion with --force accepts what nobody here can know"


def _contents(here: Here) -> Iterator[Check]:
    """Yield what the scrub has found, where there is one. How much it has proven is said, and not asked."""
    differences, verified = here.described.get("differences"), here.described.get("verified")
    if differences is None:
        return
    asked = "no range that was found to differ from the primary's"
    proven = "no round of the scrub has ended yet" if not verified else f"all was proven at LSN {verified['lsn']:,}"
    if differences:
        advice = "find out which side is right before it is promoted: `vecstore verify` on both"
        yield Check("contents", "warn", f"{len(differences)} ranges differ; {proven}", asked, advice)
    else:
        yield Check("contents", "ok", f"no range that was compared differs; {proven}", asked)


def _primary(here: Here) -> Check:
    found = here.described
    is_open = bool(found.get("accepts_writes"))
    problem = found.get("problem") or ""
    text = f"primary of epoch {found.get('epoch')}, {found.get('status')}" + (f": {problem}" if problem else "")
    advice = "" if is_open else "`vecstore status` says what it waits for"
    return Check("state", "ok" if is_open else "warn", text, "it takes writes", advice)


def _standbys(here: Here) -> Iterator[Check]:
    """Yield a check of each slot: is somebody there who could take over?"""
    asked = f"fed, and at most {here.lag_s_max:.3g} s behind"
    for slot in here.described.get("slots") or ():
        name, seconds = f"slot {slot['name']}", slot.get("lag_seconds")
        behind = (
            f"{slot['lag_records']:,} records"
            + ("" if seconds is None else f", {_seconds(float(seconds))}")
            + " behind"
        )
        if slot.get("is_lost"):
            yield Check(name, "warn", f"lost, {behind}", asked, "its standby needs the archive or a snapshot")
        elif not slot.get("connected"):
            yield Check(
                name, "warn", f"away, {behind}", asked, "look at its server; gone for good: `vecstore slots drop`"
            )
        elif seconds is None:
            yield Check(name, "unknown", f"fed, {behind}", asked)
        else:
            is_near = float(seconds) <= here.lag_s_max
            advice = "" if is_near else "does it apply slower than this one writes?"
            yield Check(name, "ok" if is_near else "warn", f"fed, {behind}", asked, advice)


# -- against the primary -----------------------------------------------------------------------------------------------

_NEVER = "what the primary has is not known here"
_WAIT = "it is told within seconds of a contact with the primary; an older primary does not tell it"


def _ago(primary: Known) -> str:
    """Say of when a comparison is, where that is not now."""
    return "" if primary.age_s < 60 else f", as of {_seconds(primary.age_s)} ago"


def _memory(here: Here, primary: Known | None) -> Check:
    mine, asked = here.facts, f"the primary's contents in {MEMORY_SHARE_MAX:.0%} of a budget that the machine has"
    budget = f"{mine.memory_bytes / _MIB:,.0f} of {mine.memory_bytes_max / _MIB:,.0f} MiB"
    advice = "more memory, or a higher memory_bytes_max: it would refuse writes"
    if mine.memory_bytes_max > here.machine_bytes:
        found = f"{budget}, of a machine with {here.machine_bytes / _MIB:,.0f} MiB"
        return Check("memory", "warn", found, asked, "more memory, or a lower memory_bytes_max")
    if mine.memory_bytes > MEMORY_SHARE_MAX * mine.memory_bytes_max:
        return Check("memory", "warn", budget, asked, advice)
    if primary is None:
        return Check("memory", "unknown", f"{budget}; {_NEVER}", asked, _WAIT)
    theirs = primary.facts
    found = (
        f"{budget}; the primary holds {theirs.memory_bytes / _MIB:,.0f} of {theirs.memory_bytes_max / _MIB:,.0f} MiB"
    )
    is_small = theirs.memory_bytes > MEMORY_SHARE_MAX * mine.memory_bytes_max
    return Check("memory", "warn" if is_small else "ok", found + _ago(primary), asked, advice if is_small else "")


def _processors(here: Here, primary: Known | None) -> Check:
    mine = here.facts
    asked = f"as many as the primary has, or its load in {BUSY_SHARE_MAX:.0%} of them"
    found = f"{mine.processors} processors"
    if primary is None:
        return Check("processors", "unknown", f"{found}; {_NEVER}", asked, _WAIT)
    theirs, busy = primary.facts, primary.facts.busy_processors
    is_fewer = mine.processors < theirs.processors
    if busy is None:
        found = f"{found}; the primary has {theirs.processors}, and has not measured its load yet{_ago(primary)}"
        return Check("processors", "unknown" if is_fewer else "ok", found, asked, _WAIT if is_fewer else "")
    load = f"{theirs.reads_per_s or 0:,.0f} reads and {theirs.writes_per_s or 0:,.0f} writes a second"
    found = f"{found}; the primary kept {busy:.1f} of its {theirs.processors} busy at most, with {load}{_ago(primary)}"
    if is_fewer and busy > BUSY_SHARE_MAX * mine.processors:
        return Check("processors", "warn", found, asked, "more processors here, or fewer callers after a failover")
    return Check("processors", "ok", found, asked)


def _gpus(here: Here) -> Iterator[Check]:
    """Yield how the GPUs are of a store that uses some."""
    if here.facts.device == "gpu":
        asked = "each GPU takes questions, and every large segment has a place on one"
        found = f"{len(here.devices or ())} GPUs, {here.facts.device_bytes_max / _MIB:,.0f} MiB"
        yield _troubled(here, asked) or Check("device", "ok", found, asked)


def _device(here: Here, primary: Known | None) -> Check:
    mine, asked = here.facts, "GPUs that take what the primary's GPUs hold, where it has some"
    troubled = _troubled(here, asked)
    if troubled is not None:
        return troubled
    found = f"{mine.device}" + (f", {mine.device_bytes_max / _MIB:,.0f} MiB" if mine.device == "gpu" else "")
    if primary is None:
        return Check("device", "unknown", f"{found}; {_NEVER}", asked, _WAIT)
    theirs = primary.facts
    if theirs.device != "gpu":
        return Check("device", "ok", f"{found}; the primary searches on the CPU{_ago(primary)}", asked)
    found = f"{found}; the primary's indexes take {theirs.device_bytes / _MIB:,.0f} MiB of GPUs{_ago(primary)}"
    is_small = mine.device != "gpu" or mine.device_bytes_max < theirs.device_bytes
    advice = "GPUs of as much memory: the CPU would answer what does not fit" if is_small else ""
    return Check("device", "warn" if is_small else "ok", found, asked, advice)


def _troubled(here: Here, asked: str) -> Check | None:
    """Return what is wrong with the GPUs here; None where nothing is."""
    if here.devices is None:
        return Check(
            "device", "unknown", "the GPUs here have not told how they are", asked, "`vecstore status`, the driver"
        )
    down = [f"{device.name}: {device.problem}" for device in here.devices if device.problem]
    if down:
        return Check(
            "device", "warn", "; ".join(down), asked, "`vecstore status` names the problem; the CPU answers meanwhile"
        )
    if here.refused_segments:
        found = f"{here.refused_segments} segments were taken by no GPU"
        return Check("device", "warn", found, asked, "`vecstore plan`: more memory, or more GPUs")
    return None


def _options(here: Here, primary: Known | None) -> Check:
    asked = "the options that must agree between Regions do"
    if primary is None:
        return Check("config", "unknown", _NEVER, asked, _WAIT)
    mine, theirs = here.facts, primary.facts
    # A newer version may know options that the older one does not.
    names = sorted(set(mine.options) & set(theirs.options))
    differing = [
        f"{name} is {_plain(mine.options[name])} here, {_plain(theirs.options[name])} there"
        for name in names
        if mine.options[name] != theirs.options[name]
    ]
    if mine.region and mine.region == theirs.region:
        differing.append(f"server.region is {mine.region!r} here and there, and should not be")
    if differing:
        advice = "`vecstore config` of both; start the one that is wrong with the other's value"
        return Check("config", "warn", "; ".join(differing) + _ago(primary), asked, advice)
    return Check("config", "ok", f"{len(names)} options agree{_ago(primary)}", asked)


def _tokens(here: Here, primary: Known | None) -> Check:
    asked = "the primary's callers are known here, with the same grants"
    if here.secrets_problem:
        return Check("tokens", "warn", here.secrets_problem, asked, "mend the file: other stores are reached with it")
    mine = here.facts
    if primary is None:
        return Check("tokens", "unknown", f"{mine.tokens:,} here; {_NEVER}", asked, _WAIT)
    theirs = primary.facts
    found = f"{mine.tokens:,} here, {theirs.tokens:,} there"
    if mine.marks.get("auth") == theirs.marks.get("auth"):
        return Check("tokens", "ok", f"{found}, the same{_ago(primary)}", asked)
    advice = "give both the same file of tokens and keys, and send SIGHUP"
    return Check("tokens", "warn", f"{found}, not the same{_ago(primary)}", asked, advice)


def _version(here: Here, primary: Known | None) -> Check:
    mine, asked = here.facts, "not older than the primary's"
    if primary is None:
        return Check("version", "unknown", f"{mine.version}; {_NEVER}", asked, _WAIT)
    theirs = primary.facts
    found = (
        f"{mine.version}, format {mine.format}; the primary's {theirs.version}, format {theirs.format}{_ago(primary)}"
    )
    if (mine.format, _numbers(mine.version)) < (theirs.format, _numbers(theirs.version)):
        return Check("version", "warn", found, asked, "bring this server to the primary's version")
    is_newer = (mine.version, mine.format) != (theirs.version, theirs.format)
    advice = "after a takeover the old primary follows only once it is brought to this version" if is_newer else ""
    return Check("version", "ok", found, asked, advice)


# -- of this server alone ----------------------------------------------------------------------------------------------


def _disk(here: Here) -> Check:
    needed = here.disk_free_bytes_min + here.log_bytes_max
    found = f"{here.disk_free_bytes / _MIB:,.0f} MiB free"
    asked = f"{needed / _MIB:,.0f} MiB: the floor, and the log that a primary keeps for a standby that is away"
    if here.disk_free_bytes < needed:
        return Check("disk", "warn", found, asked, "a larger disk, or a lower slot_retained_bytes_max in both Regions")
    return Check("disk", "ok", found, asked)


def _indexes(here: Here) -> Check:
    limit = int(here.unindexed_rows_max * UNINDEXED_SHARE_MAX)
    found, asked = f"at most {here.unindexed_rows:,} rows of a shard without one", f"at most {limit:,}"
    if here.build_problem:
        return Check("indexes", "warn", f"{found}; building fails: {here.build_problem}", asked, "the log says why")
    if here.unindexed_rows > limit:
        return Check("indexes", "warn", found, asked, "wait until it has built them, or raise build_threads")
    return Check("indexes", "ok", found, asked)


def _archive(here: Here, primary: Known | None) -> Check:
    asked = "one where the primary has one, and it answers"
    archive = here.archive
    if archive is None:
        has_one = primary is not None and bool(primary.facts.marks.get("archive"))
        if has_one:
            return Check(
                "archive", "warn", "none here, and the primary has one", asked, "serve with the same --archive"
            )
        if primary is None and here.described.get("role") != "primary":
            return Check("archive", "unknown", f"none here; {_NEVER}", asked, _WAIT)
        return Check("archive", "ok", "none is configured", asked)
    if not archive.answered:
        state: State = "unknown" if archive.age_s < 5 else "warn"
        found = f"{archive.where}: no answer for {_seconds(archive.age_s)}"
        return Check(
            "archive", state, found, asked, "the network, its names, its credentials; a takeover does not wait for it"
        )
    if archive.problem:
        return Check(
            "archive",
            "warn",
            f"{archive.where}: {archive.problem}",
            asked,
            "the repository, and this server's way to it",
        )
    found = f"{archive.where} answered {_seconds(archive.age_s)} ago"
    if not archive.is_made and primary is not None and primary.facts.marks.get("archive"):
        advice = "is its disk mounted, is its prefix right? Where it is new, the first archived record makes it"
        return Check("archive", "warn", f"{found}, and is no repository yet", asked, advice)
    if primary is not None and primary.facts.marks.get("archive", "") != here.facts.marks.get("archive", ""):
        advice = "name the same repository in both Regions: what was archived before bridges a standby that was away"
        return Check("archive", "warn", f"{found}; the primary's is another one, or none{_ago(primary)}", asked, advice)
    return Check("archive", "ok", found, asked)


def _certificates(here: Here) -> Check:
    asked = f"each for {CERTIFICATE_DAYS_MIN:.0f} days more"
    if here.certificates is None:
        return Check("certificates", "unknown", "their files were not read yet, or the disk does not answer", asked)
    if not here.certificates:
        return Check("certificates", "ok", "none is used", asked)
    bad, texts = False, []
    for one in here.certificates:
        if one.ends_s is None:
            bad = True
            texts.append(f"{one.option}: {one.problem}")
            continue
        days = (one.ends_s - here.now_s) / DAY_S
        bad = bad or days < CERTIFICATE_DAYS_MIN
        texts.append(f"{one.option}: {days:.0f} days" if days >= 0 else f"{one.option}: ended {-days:.0f} days ago")
    advice = "renew the files, then SIGHUP" if bad else ""
    return Check("certificates", "warn" if bad else "ok", "; ".join(texts), asked, advice)


def _start(here: Here) -> Check:
    asked = "a start that needs no names resolved"
    if here.names:
        advice = "listen on an address, and give the name as replication.advertise"
        return Check("start", "warn", f"{', '.join(here.names)} must be resolved first", asked, advice)
    return Check("start", "ok", "all that it needs is on this machine", asked)


# -- words -------------------------------------------------------------------------------------------------------------


def _seconds(seconds: float) -> str:
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"
    return f"{int(seconds // 60)}m{int(seconds % 60):02d}s" if seconds >= 60 else f"{seconds:.1f} s"


def _plain(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _numbers(version: str) -> tuple[int, ...]:
    """Return what two versions are compared by: their leading numbers."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
