# train.sh MINUTES DECAY LINGER RATE, with `.gpu/ab` carried: trains in the background, so that the machine
# is held by a second call where the first one's limit ends before the lease does.
mkdir -p ~/smol && cat ~/smol/aa/gguf-aa .gpu/ab/gguf-ab > ~/smol/SmolLM2.gguf
. ~/smol/env.sh
python3 -m lab.smol.lease.decoder ~/smol/SmolLM2.gguf ~/smol/decoder
for second in $(seq 45); do grep -q ^warm ~/smol/warm.log && break; sleep 1; done
pkill -f warm.sh; pkill -f /tmp/warm
cat ~/smol/warm.log
cat > ~/smol/train.sh <<X
. ~/smol/env.sh
smol /tmp/run --decoder ~/smol/decoder --minutes $1 --decay $2 --learning-rate $4 --scale 24 --log-every 42 --measure-every 36 --save-seconds 60
echo trained
X
setsid nohup bash ~/smol/train.sh > ~/smol/train.log 2>&1 < /dev/null &
sleep $3
cat ~/smol/train.log
