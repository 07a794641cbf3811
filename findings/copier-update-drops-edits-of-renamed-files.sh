#!/bin/sh
# Copier 9.15.2. An edited file that the template renames is deleted by an update, with what was written into it.
#
# `copier update` applies the difference between two versions of the template to the project. For a file that both
# versions have, it merges: a conflict is marked, and the edit survives. If the new version has the file under another
# name, or no longer has it, the project's copy is removed whatever is in it, and the new file is the template's own.
# There is no conflict, no backup and no word about it, and the exit status is 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'copier==9.15.2'
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_CONFIG_GLOBAL=/dev/null
mkdir "$folder/template"
cd "$folder/template"
git init --quiet --initial-branch=main
printf '_min_copier_version: "9"\n' > copier.yml
printf '{{ _copier_answers|to_nice_yaml }}' > '{{ _copier_conf.answers_file }}.jinja'
printf 'one\ntwo\nthree\n' > kept.txt
printf 'one\ntwo\nthree\n' > renamed.txt
printf 'one\ntwo\nthree\n' > removed.txt
git add . && git commit --quiet -m 1 && git tag v1
"$folder/venv/bin/copier" copy --quiet --defaults --vcs-ref v1 "$folder/template" "$folder/project"
cd "$folder/project"
git init --quiet --initial-branch=main
for name in kept renamed removed; do printf 'one\ntwo\nmine\n' > "$name.txt"; done
git add . && git commit --quiet -m mine
cd "$folder/template"
git mv renamed.txt new.txt
git rm --quiet removed.txt
printf 'ONE\ntwo\nthree\n' > kept.txt
git add . && git commit --quiet -m 2 && git tag v2
cd "$folder/project"
"$folder/venv/bin/copier" update --quiet --defaults --vcs-ref v2 > "$folder/said" 2>&1 && status=0 || status=$?
{
    echo "exit $status"
    for name in kept renamed removed new; do
        if [ -f "$name.txt" ]; then echo "$name: $(tr '\n' ' ' < "$name.txt")"; else echo "$name: gone"; fi
    done
    echo "lines with my edit: $(cat *.txt | grep -c mine)"
} > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
exit 0
kept: ONE two mine 
renamed: gone
removed: gone
new: one two three 
lines with my edit: 1
SEEN
diff "$folder/expected" "$folder/seen"
cat "$folder/seen"
