"""Publish a checkpoint on the Hub in one commit, and load that very commit again.

    hf auth login
    python examples/push.py my_compressor me/my-compressor

Code, weights, processor, card and handler go in one commit, or nothing does. The token is the one
that is logged in (or HF_TOKEN); it is never printed or saved by this package.
"""

import argparse

from transformers import AutoModel

from memslots.hub_cards.push import push_checkpoint, staged

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", help="folder of a checkpoint")
parser.add_argument("repo", help="owner/name; made, private, where it does not exist")
parser.add_argument("--license", default="apache-2.0", help="yours: no file tells it")
options = parser.parse_args()

# 1. What would be sent. The checkpoint is loaded first: one that does not load is not pushed.
with staged(options.checkpoint, options.repo, license=options.license) as (_, staged_files):
    for file in staged_files:
        print(f"{file.size:>12,} {file.name}")

# 2. Push.
commit = push_checkpoint(options.checkpoint, options.repo, private=True, license=options.license)
print(commit.commit_url)

# 3. Load it as everybody will: by the commit, since code of the repository is run.
model = AutoModel.from_pretrained(options.repo, trust_remote_code=True, revision=commit.oid)
print(model.generate(context="The treaty was signed in Lagos.", question="Where?"))
