# wait.sh SECONDS: brings back the weights once they are trained, or what there is then.
. ~/smol/env.sh
for second in $(seq $1); do grep -q ^trained ~/smol/train.log && break; sleep 1; done
cp /tmp/run/slots-* /tmp/run/curve.jsonl ~/smol/*.log $OUT
tail -n 3 ~/smol/train.log
timeout 45 python3 benchmarks/against_published.py --device cuda --repeats 3 --output $OUT
