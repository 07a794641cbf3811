"""Update a project: to another version of its template, to other answers, or to both.

Copier renders the project twice: as the recorded version makes it, and as the new version makes it with
the same answers. git merges the difference into the last commit of the project, in a temporary repository.
An edit follows its file when the template renames that file, or its folder; a deleted file stays deleted; a
file that git cannot merge stays as it is. Copier's own `update` loses edits in all of these cases.

Guarantees: the project changes in one step at the very end or not at all, and nothing that is not committed
is touched.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scaffold import render
from scaffold.errors import BadInput, CannotUpdate, ScaffoldError, TemplateFault
from scaffold.questions import Questionnaire, nearest, read_record
from scaffold.repository import GitFailed, git, masked

ANSWERS = ".copier-answers.yml"
# Value of `to` that keeps the version, as Copier has it.
CURRENT = ":current:"
SHORTCUTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
MODIFIED, ADDED, REMOVED, MOVED = "MADR"
KINDS = {MODIFIED: "changed", ADDED: "added", REMOVED: "removed", MOVED: "moved"}
# Stages of git's index during a merge.
BEFORE, BY_USER, BY_TEMPLATE = 1, 2, 3
CONFLICTS = 1  # exit code of `git merge`
YOURS, BASE, THEIRS = "yours", "base", "theirs"
# git without any settings, an identity for commits that nobody will see, and no limit of renames.
NEUTRAL = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "scaffold"), ("EMAIL", "scaffold@localhost"))
    },
}
SETTINGS = {
    "core.autocrlf": "false",
    "core.excludesFile": os.devnull,
    "core.attributesFile": os.devnull,
    "core.hooksPath": os.devnull,
    # Revisions and modules that a user adds to a folder follow the folder.
    "merge.directoryRenames": "true",
    "merge.renameLimit": "100000",
    "diff.renameLimit": "100000",
    "gc.auto": "0",
}


@dataclass(frozen=True)
class Change:
    """One file that differs between two versions of the template."""

    kind: str
    path: str
    source: str = ""

    def __str__(self) -> str:
        """Return a line as git prints it: a letter and the path."""
        return f"{self.kind} {self.source} -> {self.path}" if self.source else f"{self.kind} {self.path}"


@dataclass(frozen=True, kw_only=True)
class Update:
    """An update that is computed and not applied.

    Attributes:
        old: version that the project records.
        new: version that it is brought to.
        commits: number of commits of the template between them.
        answers: changed and new answers, each with the previous one; None if the question is new.
        changes: files that differ between the two versions.
        conflicts: files with lines that both sides changed.
        unmerged: files that both sides changed and git cannot merge, such as images; they stay as they are.
        moved: edited files that the template moved, with the new path, which has the edits.
        dropped: edited files that the template removes; they stay.
        deleted: files that the user deleted and the template changes; they stay deleted.
        in_use: files that the template changes, but that belong to the project once they exist: revisions.
    """

    old: str
    new: str
    commits: int
    answers: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    unmerged: list[str] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)

    @property
    def is_due(self) -> bool:
        """True if there is another version or another answer."""
        return self.old != self.new or bool(self.answers)

    @property
    def needs_a_look(self) -> bool:
        """True if a person has to decide or check something."""
        return bool(self.conflicts or self.unmerged or self.moved or self.dropped)


@contextlib.contextmanager
def prepared(
    project: Path, given: Mapping[str, Any], *, to: str | None
) -> Iterator[tuple[Update, "Merge | None"]]:
    """Compute the update of `project`; yield it with the merge to apply, None if there is nothing to do.

    Args:
        project: folder of the project, at its last commit.
        given: answers to change.
        to: version of the template; the newest release if None, the recorded one if ":current:".

    Raises:
        BadInput: the folder is no project, has uncommitted changes, or an argument is invalid.
        CannotUpdate: the template cannot be reached or rendered, or a file is in the way.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="scaffold-", ignore_cleanup_errors=True) as folder:
            place = Place(project)
            template = Template(place, Path(folder) / "template", to)
            update = Update(old=template.old, new=template.new, commits=template.commits)
            if not given and template.old == template.new:
                yield update, None
                return
            renders = _Renders(template, Path(folder), place.answers, given)
            merge = Merge(place, Path(folder) / "merge", renders)
            yield merge.run(update, renders), merge
    except GitFailed as error:
        raise CannotUpdate(f"git cannot merge: {error}. The project is as it was.") from error


class Place:
    """The project, at its last commit."""

    def __init__(self, project: Path) -> None:
        """Check that `project` can be updated, and read its answers."""
        self.project = Path(os.path.abspath(project))  # noqa: PTH100 - `resolve` would follow links
        file = self.project / ANSWERS
        if not file.is_file():
            raise BadInput(
                f"{project} is no project of scaffold: it has no {ANSWERS}. Name the folder of one."
            )
        self.answers = read_record(file)
        try:
            self.top = Path(git(self.project, "rev-parse", "--show-toplevel"))
            self.prefix = git(self.project, "rev-parse", "--show-prefix")
            git(self.top, "cat-file", "-e", f"HEAD:{self.prefix}{ANSWERS}")
        except OSError as error:
            raise BadInput("git is not on PATH, and an update needs it. Install git.") from error
        except GitFailed as error:
            raise BadInput(
                f"{project} is not committed to a git repository, so there is nothing to merge with. "
                "Run `git init`, `git add --all` and `git commit` there."
            ) from error
        status = (
            "--no-optional-locks",
            "status",
            "--porcelain",
            "-z",
            "--no-renames",
            "--untracked-files=normal",
        )
        if found := [line for line in git(self.top, *status).split("\0") if line]:
            raise BadInput(
                f"{found[0][3:]} is not committed ({len(found)} in all). "
                "Commit or stash it, then update again."
            )

    @property
    def tree(self) -> str:
        """Tree of the last commit, below the folder of the project."""
        return git(self.top, "rev-parse", f"HEAD:{self.prefix}" if self.prefix else "HEAD^{tree}")

    def git(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, given: str | None = None
    ) -> str:
        """Run git in the repository of the project, without its hooks."""
        neutral = ("-c", f"core.hooksPath={os.devnull}", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
        return git(self.top, *neutral, *arguments, env=env, given=given)


class Template:
    """The repository of the template, with the recorded and the wanted version."""

    def __init__(self, place: Place, folder: Path, to: str | None) -> None:
        """Clone the repository into `folder` and find both versions there."""
        recorded = place.answers
        self.folder = folder
        if not (recorded.get("_src_path") and recorded.get("_commit")):
            raise BadInput(
                f"{ANSWERS} does not record the version that the project was made from. Write the template's "
                "repository to `_src_path` and the version to `_commit` there, and commit that."
            )
        self.old = str(recorded["_commit"])
        self.source = self._clone(str(recorded["_src_path"]), place.project)
        self.old_commit = self._commit(self.old)
        if not self.old_commit:
            raise BadInput(
                f"The template at {masked(self.source)} has no {self.old}. Write the version that the "
                f"project was made from to `_commit` in {ANSWERS}, and commit that."
            )
        self.new, self.new_commit = self._wanted(to)
        self.commits = int(self._git("rev-list", "--count", f"{self.old_commit}..{self.new_commit}"))

    def export(self, commit: str, folder: Path) -> Path:
        """Write the files of a commit to `folder`."""
        # Line ends of Windows in a template would become those of the project.
        self._git("-c", "core.autocrlf=false", "worktree", "add", "--quiet", "--detach", folder, commit)
        return folder

    def _git(self, *arguments: str | Path) -> str:
        return git(self.folder, "-c", f"core.hooksPath={os.devnull}", *arguments)

    def _clone(self, source: str, project: Path) -> str:
        for shortcut, url in SHORTCUTS.items():
            if source.startswith(shortcut):
                source = f"{url}{source.removeprefix(shortcut)}.git"
        source = source.removeprefix("git+")
        if "://" not in source and not _is_remote(source):
            source = str(_local(source, project))
        options = ("--quiet", "--no-checkout", f"--config=core.hooksPath={os.devnull}")
        try:
            git(project, "clone", *options, "--", source, self.folder)
        except GitFailed as error:
            raise CannotUpdate(
                f"The template at {masked(source)} cannot be cloned: {error}. If it has moved, write its "
                f"place to `_src_path` in {ANSWERS}, and commit that."
            ) from error
        return source

    def _commit(self, name: str) -> str:
        """Return the commit of that name, or an empty string."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except GitFailed:
            return ""

    def _wanted(self, to: str | None) -> tuple[str, str]:
        if to == CURRENT:
            return self.old, self.old_commit
        releases = self._releases()
        if to is None:
            name = releases[0] if releases else "HEAD"
            commit = self._commit(f"refs/tags/{name}" if releases else name)
            # A project from a checkout may be ahead of the last release.
            if self._is_ancestor(commit):
                return self.old, self.old_commit
            return self._described(commit, name), commit
        for name in (f"refs/tags/{to}", f"refs/tags/v{to}", f"refs/remotes/origin/{to}", to):
            if commit := self._commit(name):
                break
        else:
            known = f" Newest: {', '.join(releases[:3])}." if releases else ""
            raise BadInput(f"--to: the template has no version {to!r}{nearest(to, releases)}.{known}")
        if commit != self.old_commit and self._is_ancestor(commit):
            raise BadInput(f"--to: {to} is older than {self.old}, and an update goes forward only.")
        return self._described(commit, name.removeprefix("refs/tags/")), commit

    def _described(self, commit: str, name: str) -> str:
        if commit == self.old_commit:
            return self.old
        is_tag = self._commit(f"refs/tags/{name}") == commit
        return name if is_tag else self._git("describe", "--tags", "--always", commit)

    def _is_ancestor(self, commit: str) -> bool:
        return not self._git("rev-list", "--max-count=1", f"{self.old_commit}..{commit}")

    def _releases(self) -> list[str]:
        """Return the tags that are versions, the newest first, releases before previews."""
        from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - only an update needs it

        found = {}
        for tag in self._git("tag").splitlines():
            with contextlib.suppress(InvalidVersion):
                found[tag] = Version(tag)
        return sorted(found, key=lambda tag: (not found[tag].is_prerelease, found[tag]), reverse=True)


class _Renders:
    """The project as the recorded version makes it, and as the new version makes it."""

    def __init__(
        self, template: Template, folder: Path, recorded: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        old = template.export(template.old_commit, folder / "old-template")
        new = template.export(template.new_commit, folder / "new-template")
        self.folders = {BASE: folder / BASE, THEIRS: folder / THEIRS}
        try:
            before = Questionnaire(old)
            questionnaire = Questionnaire(new)
            known = {name: recorded[name] for name in before.askable if name in recorded}
            answers = questionnaire.resolve(given, recorded=known)
            settled = {
                name: answers[name]
                for name in questionnaire.askable
                if name in {*given, *known} and questionnaire.applies(name, answers)
            }
            render.render(old, self.folders[BASE], known, origin={})
            origin = {"_src_path": template.source, "_commit": template.new}
            render.render(new, self.folders[THEIRS], settled, origin=origin)
        except TemplateFault as error:
            raise CannotUpdate(str(error)) from error
        if read_record(self.folders[THEIRS] / ANSWERS).get("_commit") != template.new:
            raise CannotUpdate(
                f"The template at {masked(template.source)} is not scaffold's. Use `copier update`."
            )
        self.answers = {
            name: (known.get(name), answers[name])
            for name in questionnaire.askable
            if questionnaire.applies(name, answers) and known.get(name) != answers[name]
        }
        patterns = questionnaire.settings.get("_skip_if_exists", [])
        self.kept = [questionnaire.evaluate(pattern, answers) for pattern in patterns]


class Merge:
    """The merge, in a temporary repository that borrows the objects of the project's."""

    def __init__(self, place: Place, folder: Path, renders: _Renders) -> None:
        """Create the repository in `folder` with a commit for each side, each over that of the old render."""
        self.place = place
        self.folder = folder
        folder.mkdir()
        form = place.git("rev-parse", "--show-object-format")
        self._git("init", "--quiet", "--template=", f"--object-format={form}")
        for name, value in SETTINGS.items():
            self._git("config", name, value)
        objects = Path(place.git("rev-parse", "--git-path", "objects"))
        alternates = folder / ".git/objects/info/alternates"
        alternates.parent.mkdir(exist_ok=True)
        alternates.write_text(f"{(place.top / objects).resolve()}\n", encoding="utf-8")
        trees = {side: self._tree_of(path) for side, path in renders.folders.items()}
        self.sides = {side: self._files(tree) for side, tree in (*trees.items(), (YOURS, place.tree))}
        self.in_use = self._give_up(renders.kept)
        # The new answers file holds, whatever was edited in the old one.
        for side in (BASE, YOURS):
            self.sides[side][ANSWERS] = self.sides[THEIRS][ANSWERS]
        self.base = self._commit_of(BASE)
        self.yours = self._commit_of(YOURS, self.base)
        self.theirs = self._commit_of(THEIRS, self.base)
        self.stages: dict[str, dict[int, str]] = {}
        self.result: dict[str, str] = {}

    def run(self, update: Update, renders: _Renders) -> Update:
        """Merge both sides; return `update` with what is found."""
        branch = "scaffold-" + "".join(
            letter if letter.isalnum() or letter in ".-" else "-" for letter in update.new
        )
        self._git("checkout", "--quiet", "--detach", self.yours)
        self._git("update-ref", f"refs/heads/{branch}", self.theirs)
        try:
            self._git("merge", "--quiet", "--no-commit", "--no-ff", branch)
        except GitFailed as error:
            if error.code != CONFLICTS:
                raise
        self._read_stages()
        deleted = [path for path, stages in self.stages.items() if stages.keys() == {BEFORE, BY_TEMPLATE}]
        for path in deleted:
            del self.stages[path]
            self._git("rm", "--quiet", "--force", "--", path)
        for path in self.stages:
            is_there = os.path.lexists(self.folder / path)
            self._git(*(("add", "--force") if is_there else ("rm", "--quiet", "--cached")), "--", path)
        self.result = self._files(self._git("write-tree"))
        changes = self._changes()
        dropped = [path for path, stages in self.stages.items() if stages.keys() == {BEFORE, BY_USER}]
        unmerged = [
            path
            for path, stages in self.stages.items()
            if {BY_USER, BY_TEMPLATE} <= stages.keys() and self.result.get(path) == stages[BY_USER]
        ]
        return Update(
            old=update.old,
            new=update.new,
            commits=update.commits,
            answers=renders.answers,
            changes=changes,
            conflicts=[path for path in self.stages if path not in {*dropped, *unmerged}],
            unmerged=unmerged,
            moved=self._moved(changes),
            dropped=dropped,
            deleted=deleted,
            in_use=self.in_use,
        )

    def obstacle(self) -> str | None:
        """Return a file that git ignores and the update would replace, if there is one."""
        for path in sorted(self.result.keys() - self.sides[YOURS].keys()):
            if os.path.lexists(self.place.project / path):
                return path
        return None

    def apply(self) -> None:
        """Change the project: everything is staged, and conflicts are marked in files and index.

        Raises:
            CannotUpdate: nothing was changed, because a file is in the way or cannot be written.
            ScaffoldError: some files were changed, and git cannot take that back.
        """
        if path := self.obstacle():
            raise CannotUpdate(
                f"{path} is in the way: the new version has that file, and git ignores yours. Move it."
            )
        place, prefix = self.place, self.place.prefix
        tree = self._tree_of_files(self.result)
        # Its parents bring the stages of the conflicts along.
        commit = self._git("commit-tree", "-m", "result", "-p", self.base, "-p", self.theirs, tree)
        self._git("update-ref", "refs/heads/result", commit)
        quietly = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        place.git("-c", "protocol.file.allow=always", "fetch", *quietly, self.folder, "refs/heads/result")
        if prefix:
            index = {"GIT_INDEX_FILE": str(self.folder / ".git/whole")}
            place.git("read-tree", "HEAD", env=index)
            place.git("--literal-pathspecs", "rm", "-r", "--quiet", "--cached", "--", prefix, env=index)
            place.git("read-tree", f"--prefix={prefix}", tree, env=index)
            tree = place.git("write-tree", env=index)
        stages = "".join(
            f"0 {'0' * len(tree)}\t{prefix}{path}\0"
            + "".join(f"{entry} {number}\t{prefix}{path}\0" for number, entry in sorted(entries.items()))
            for path, entries in self.stages.items()
        )
        with render.undisturbed():
            place.git("update-index", "-q", "--refresh")
            try:
                place.git("read-tree", "-m", "-u", "HEAD", tree)
                if stages:
                    place.git("update-index", "-z", "--index-info", given=stages)
            except GitFailed as error:
                try:
                    self._undo()
                except (GitFailed, OSError) as second:
                    raise ScaffoldError(
                        f"The update is written in part: {error}; {second}. Run `git reset --hard`."
                    ) from error
                raise CannotUpdate(f"Cannot write the update: {error}. The project is as it was.") from error

    def _undo(self) -> None:
        self.place.git("read-tree", "--reset", "-u", "HEAD")
        for path in self.result.keys() - self.sides[YOURS].keys():
            (self.place.project / path).unlink(missing_ok=True)

    def _git(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, given: str | None = None
    ) -> str:
        return git(self.folder, *arguments, env={**NEUTRAL, **(env or {})}, given=given)

    def _tree_of(self, folder: Path) -> str:
        """Return the tree of a rendered project, without the files that it ignores itself."""
        index = {"GIT_INDEX_FILE": str(self.folder / f".git/{folder.name}")}
        self._git(f"--work-tree={folder}", "--git-dir=.git", "add", "--all", "--", folder, env=index)
        return self._git("write-tree", env=index)

    def _files(self, tree: str) -> dict[str, str]:
        """Return mode and object of each file of a tree, by path."""
        entries = self._git("ls-tree", "-r", "-z", "--full-tree", tree).split("\0")
        split = (entry.split("\t", 1) for entry in entries if entry)
        return {path: " ".join(facts.split()[::2]) for facts, path in split}

    def _tree_of_files(self, files: Mapping[str, str]) -> str:
        index = {"GIT_INDEX_FILE": str(self.folder / ".git/files")}
        self._git("read-tree", "--empty", env=index)
        lines = "".join(f"{entry}\t{path}\0" for path, entry in files.items())
        self._git("update-index", "-z", "--index-info", env=index, given=lines)
        return self._git("write-tree", env=index)

    def _commit_of(self, side: str, *parents: str) -> str:
        options = [option for parent in parents for option in ("-p", parent)]
        return self._git("commit-tree", "-m", side, *options, self._tree_of_files(self.sides[side]))

    def _give_up(self, patterns: list[str]) -> list[str]:
        """Take files that belong to the project out of the merge; return those that the template changes.

        Such a file matches `_skip_if_exists`, and the project has it or another one of its folder. Revisions
        are a chain, so a new one of the template would be a second head beside the project's own.
        """
        from pathspec import GitIgnoreSpec  # noqa: PLC0415 - comes with Copier, which only an update needs here

        base, theirs, yours = (self.sides[side] for side in (BASE, THEIRS, YOURS))
        kept = GitIgnoreSpec.from_lines(patterns)
        folders = {PurePosixPath(path).parent for path in yours if kept.match_file(path)}
        found = [
            path
            for path in {**base, **theirs}
            if kept.match_file(path) and PurePosixPath(path).parent in folders
        ]
        changed = sorted(path for path in found if base.get(path) != theirs.get(path))
        for path in found:
            for side in (base, theirs):
                side.pop(path, None)
                if path in yours:
                    side[path] = yours[path]
        return changed

    def _read_stages(self) -> None:
        for entry in self._git("ls-files", "--unmerged", "-z").split("\0"):
            if entry:
                facts, path = entry.split("\t", 1)
                mode, sha, number = facts.split()
                self.stages.setdefault(path, {})[int(number)] = f"{mode} {sha}"

    def _changes(self) -> list[Change]:
        """Return the files that differ between both renders, apart from the answers file."""
        diff = ("diff-tree", "-r", "-z", "--find-renames", "--name-status", self.base, self.theirs)
        words = iter(self._git(*diff).split("\0"))
        found = []
        for word in words:
            if word.startswith(MOVED):
                source = next(words)
                found.append(Change(MOVED, next(words), source))
            elif word:
                found.append(Change(word[0].replace("T", MODIFIED), next(words)))
        return sorted(found, key=lambda change: change.path)

    def _moved(self, changes: list[Change]) -> list[tuple[str, str]]:
        """Return the files with work of the user that are at another place after the merge."""
        base, yours = self.sides[BASE], self.sides[YOURS]
        edited = [
            (change.source, change.path)
            for change in changes
            if change.source and yours.get(change.source, base[change.source]) != base[change.source]
        ]
        places = {entry: path for path, entry in self.result.items() if path not in yours}
        gone = [path for path in yours if path not in base and path not in self.result]
        return edited + [(path, places[yours[path]]) for path in gone if yours[path] in places]


def _is_remote(source: str) -> bool:
    """Tell whether git takes `source` for host:path instead of a folder."""
    head, colon, _ = source.partition(":")
    return bool(colon) and "/" not in head


def _local(source: str, project: Path) -> Path:
    """Return the folder or bundle that a project names, which must be there.

    `copier copy` records a relative path as it was typed, mostly beside the project.
    """
    named = Path(source).expanduser()
    places = [named] if named.is_absolute() else [project.parent / named, project / named]
    for place in places:
        if place.is_file() or (place / ".git").exists() or (place / "HEAD").is_file():
            return Path(os.path.abspath(place))  # noqa: PTH100 - `resolve` would follow links
    relative = "" if named.is_absolute() else ", a relative path,"
    raise BadInput(
        f"`_src_path` in {ANSWERS} is {masked(source)}{relative} and there is no git repository. Write the "
        "URL or the full path of the template's repository there, and commit that."
    )
