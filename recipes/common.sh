# Shared by the recipes; read by them, not run.
#
#   DATA       folder of recordings with the splits train and dev (docs/train.md)      ../shared/data/foley
#   TRAIN REAL recordings to train on, and to measure against                          $DATA:train and $DATA:dev
#   OUT        folder of everything that the recipe makes                              runs/<name of the system>
#   SIZE       small: hours to days of one CPU core; published: the report's, for a GPU; toy: seconds, to try a recipe
#   SEED       of all trainings                                                        0
#   THREADS    CPU threads                                                             1
#   DEVICE     auto or cpu                                                             auto
#   VOCODER    a vocoder run to use instead of training one
#   COUNT      sounds of each label that are measured                                  100
#   EMBEDDING  of the evaluation, with WEIGHTS if they are not found by themselves     mn04
#
# Run the same command again to continue: finished stages are skipped, a training resumes from its last checkpoint.

set -eu

fail() {
  echo "$0: $*" >&2
  exit 2
}

case ${1:-} in -h | --help)
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  sed -n '3,14s/^# \{0,1\}//p' "$(dirname "$0")/common.sh"
  exit 0
  ;;
esac

# begin NAME: read the variables and open OUT.
begin() {
  NAME=$1
  DATA=${DATA:-../shared/data/foley}
  TRAIN=${TRAIN:-$DATA:train}
  REAL=${REAL:-$DATA:dev}
  OUT=${OUT:-runs/$NAME}
  SIZE=${SIZE:-small}
  SEED=${SEED:-0}
  COUNT=${COUNT:-100}
  EMBEDDING=${EMBEDDING:-mn04}
  RUN=(--seed "$SEED" --threads "${THREADS:-1}" --device "${DEVICE:-auto}" --tracker none)
  LABELS="dog_bark footstep gunshot keyboard moving_motor_vehicle rain sneeze_cough"
  case $SIZE in
    small | published) ;;
    toy) LABELS=all ;;
    *) fail "SIZE=$SIZE: expected small, published or toy" ;;
  esac
  for source in "$TRAIN" "$REAL"; do
    [ -d "${source%:*}" ] || fail "no folder ${source%:*}: set DATA to a folder of recordings with the splits train and dev"
  done
  settings="recipe=$NAME SIZE=$SIZE SEED=$SEED TRAIN=$TRAIN REAL=$REAL"
  mkdir -p "$OUT/finished"
  if [ -f "$OUT/settings.txt" ]; then
    [ "$(cat "$OUT/settings.txt")" = "$settings" ] ||
      fail "$OUT was started with $(cat "$OUT/settings.txt"), not with $settings: use another OUT"
  else
    echo "$settings" >"$OUT/settings.txt"
  fi
}

# stage NAME COMMAND...: run a stage unless it has finished before.
stage() {
  name=$1
  shift
  [ -e "$OUT/finished/$name" ] && return
  echo "== $name: $*"
  "$@" || fail "stage $name stopped (exit code $?): run the recipe again to continue"
  touch "$OUT/finished/$name"
}

# vocoder: train a vocoder of the reports' mel, unless VOCODER names one.
vocoder() {
  [ -n "${VOCODER:-}" ] && return
  VOCODER=$OUT/vocoder
  case $SIZE in
    small) stage vocoder foleybox train vocoder "$TRAIN" --preset adversarial-cpu --steps 12000 --precision bf16 -o "$VOCODER" "${RUN[@]}" ;;
    published) stage vocoder foleybox train hifigan "$TRAIN" -o "$VOCODER" "${RUN[@]}" ;;
    toy) stage vocoder foleybox train vocoder "$TRAIN" --size small --preset adversarial-cpu --steps 2 --batch 2 --held-out 0.3 -o "$VOCODER" "${RUN[@]}" ;;
  esac
}

# sounds RUN FLAG...: sample COUNT sounds of each label from a run.
sounds() {
  for label in $LABELS; do
    stage "sounds-$label" foleybox sample "$1" "$label" "${@:2}" -n "$COUNT" -o "$OUT/sounds/$NAME" \
      --force --threads "${THREADS:-1}" --device "${DEVICE:-auto}"
  done
}

# measure RUN WHAT: write the JSON file and the page of the evaluation.
measure() {
  stage evaluate foleybox evaluate "$OUT/sounds/$NAME" --reference "$REAL" --floor "$TRAIN" --signal --keep-silent \
    --embedding "$EMBEDDING" ${WEIGHTS:+--weights "$WEIGHTS"} --made-by "$1" --about "$2" \
    --json "$OUT/$NAME-seed$SEED.json" --html "$OUT/$NAME-seed$SEED.html"
  echo "wrote $OUT/$NAME-seed$SEED.json; foleybox report $OUT/$NAME-seed$SEED.json ... -o systems.md makes the table"
}
