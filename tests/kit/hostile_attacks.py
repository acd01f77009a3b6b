"""What was tried on this system, by the items under which ``docs/explanation/security.md`` answers it."""

from dataclasses import dataclass

__all__ = ["ATTACKS", "Attack"]


@dataclass(frozen=True)
class Attack:
    """``item``: where the security page speaks of it; ``tried``: what the attacker does."""

    item: str
    tried: str


ATTACKS = {
    # A. Code of an approved component, in the enclave
    "reads": Attack("A.1", "component code reads the node's signing key, folders, environment (open, libc, torch)"),
    "writes": Attack("A.1", "it leaves rows outside the visit's folder (open, torch, SQLite, a folder, a move)"),
    "names": Attack("A.1", "it makes the signing key readable, shorter, older, another user's"),
    "programs": Attack("A.1", "it starts a shell or a process (fork_exec, execv, posix_spawn, system, fork)"),
    "traces": Attack("A.1", "it reads another process's memory (ptrace, process_vm_readv, /proc/PID/mem)"),
    "kills": Attack("A.1", "it ends another process (kill, SIGIO of a pipe)"),
    "sockets": Attack("A.1", "it sends rows over TCP and over a Unix socket"),
    "kernel": Attack("A.1", "it asks the kernel for what training never needs (io_uring, bpf, mount, keyctl, …)"),
    "component": Attack("A.1", "a whole enclave: all of it from the import of an approved component on"),
    "fails-open": Attack("A.2", "the machine has no walls: does the enclave start all the same?"),
    "node-level": Attack("A.2", "the machine has fewer walls than its node requires: a study comes"),
    "permit-level": Attack("A.2", "the machine has fewer walls than the permit demands: its study comes"),
    "verified-level": Attack("A.2", "a log tells of an enclave below what the permit demands: the bundle is audited"),
    "jobs": Attack("A.4", "an installed package registers the job 'train' a second time"),
    # B. The coordinator's host
    "other-user": Attack("B.5", "user nobody lists nodes, starts a run, reads the coordinator's key and database"),
    "fab": Attack("B.5", "a run is started with a FAB whose ServerApp is the attacker's"),
    "token": Attack("B.5", "any user reads the run's token off the list of processes"),
    "visit": Attack("B.6", "an invited hospital presents the study at another, with all it was sent"),
    "visit-token": Attack("B.6", "somebody who copied a visit's token asks for its evidence, closes it"),
    "same-replies": Attack("B.7", "two hospitals send byte-identical replies: are both asked for all of their own?"),
    "lost-executor": Attack("B.7", "the SuperNode takes no more parts of a reply (ObjectPushError)"),
    # C. What a permit and a statement promise
    "release-request": Attack("C.8", "under a permit for a component a study asks for metrics and a cohort"),
    "release-round": Attack("C.8", "a visit that was let in asks for such a round, and for such an output's release"),
    "release-audit": Attack("C.8", "a bundle of such a study, and one beside which such a round ran, is audited"),
    "statement": Attack("C.9", "a privacy statement with false unit, noise, trust model, limits, nodes (both schemas)"),
    "statement-bundle": Attack("C.9", "the coordinator seals a false statement, and every node acknowledges it"),
    "every-flow": Attack("C.10", "everything a hospital does happens under the study's permit: does its log verify?"),
    "cut-log": Attack("C.11", "log and heads are cut together, and the database kept"),
    "restored": Attack("C.11", "the whole state directory is put back as it was before a visit"),
    "forked": Attack("C.11", "such a log went on, and its bundle, which holds by itself, is published after another"),
    "twice": Attack("C.12", "signed JSON that says one name twice"),
    "birthday": Attack("C.13", "day by day, on which day does a date of an old patient vanish?"),
    # D. One user, and a whole hospital
    "costly-plan": Attack("D.14", "legal plans with up to ten million steps"),
    "lock": Attack("D.14", "an account is being computed while the operator stops another visit"),
    "questions": Attack("D.14", "sixty feasibility questions of one data user at once"),
    "replay": Attack("D.14", "one signed question, sent 300 times"),
    "chunked": Attack("D.14", "200 kB in chunks through an upload limit of 1,000 bytes"),
    "multipart": Attack("D.14", "malformed multipart bodies"),
    "gateway": Attack("D.14", "a stranger sends the gateway 256 MiB"),
    "passwords": Attack("D.14", "twenty wrong passwords for an operator's name: can the operator still enter?"),
    "silent": Attack("D.14", "64 local connections to an enclave that say nothing"),
    "threads": Attack("D.14", "30 slow requests take every thread of the outward listener"),
    "stop": Attack("D.14", "plans, questions, replays, bodies, passwords, silence, while an operator stops a visit"),
}  # fmt: skip
