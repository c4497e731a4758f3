# wait.sh SECONDS: brings back the weights once they are trained, or what there was a few seconds
# before the call is ended; in what is left of it, rows of PCC's table A7.
. ~/smol/env.sh
bring() { cp /tmp/run/slots-* /tmp/run/curve.jsonl ~/smol/*.log $OUT; }
for second in $(seq $(($1 / 10))); do
    grep -q ^trained ~/smol/train.log && break
    bring
    sleep 10
done
bring
tail -n 3 ~/smol/train.log
python3 benchmarks/table_a7.py --device cuda --preset gpt2-large-llama3 --repeats 1 --output $OUT
