#!/usr/bin/env bash
# Our own system: autoencoder, causal patches, vocoder, exported as an instrument. DATA=folder OUT=folder recipes/patches.sh
# OTHERS names a folder of other sounds, with or without labels, on which all parts are trained too.
# SIZE=small: the sizes of the released instruments, about a day of two cores. SIZE=published: the same, trained longer.

source "$(dirname "$0")/common.sh"
begin patches

case $SIZE in
  small)
    autoencoder=(--steps 2000)
    patches=(--steps 5000 --precision bf16)
    first=(--steps 11250 --precision bf16)
    second=(--steps 4000 --precision bf16)
    ;;
  published)
    autoencoder=(--steps 20000)
    patches=(--steps 100000 --precision bf16)
    first=(--steps 100000 --precision bf16)
    second=(--steps 20000 --precision bf16)
    ;;
  toy)
    autoencoder=(--size tiny --steps 2 --batch 4 --segment 32 --held-out 0.3)
    patches=(--size tiny --steps 2 --batch 7 --held-out 0.3)
    first=(--size small --steps 1 --batch 2 --held-out 0.3)
    second=(--size small --steps 1 --batch 3 --held-out 0.3)
    ;;
esac

stage autoencoder foleybox train autoencoder "$TRAIN" ${OTHERS:+"$OTHERS"} -o "$OUT/autoencoder" "${autoencoder[@]}" "${RUN[@]}"
stage patches foleybox train patches "$TRAIN" --autoencoder "$OUT/autoencoder" ${OTHERS:+--others "$OTHERS"} \
  -o "$OUT/patches" "${patches[@]}" "${RUN[@]}"
if [ -z "${VOCODER:-}" ]; then
  VOCODER=$OUT/vocoder
  stage first-vocoder foleybox train vocoder "$TRAIN" ${OTHERS:+"$OTHERS"} --mel wide --preset adversarial-cpu \
    -o "$OUT/first-vocoder" "${first[@]}" "${RUN[@]}"
  stage vocoder foleybox train vocoder "$TRAIN" ${OTHERS:+"$OTHERS"} --mel wide --preset textures --start-from "$OUT/first-vocoder" \
    --mels-from "$OUT/autoencoder" --redrawn-by "$OUT/patches" -o "$VOCODER" "${second[@]}" "${RUN[@]}"
fi
stage export foleybox export "$OUT/patches" "$VOCODER" --autoencoder "$OUT/autoencoder" -o "$OUT/instrument" --name patches --force
for label in $LABELS; do
  stage "sounds-$label" foleybox generate "$label" --instrument "$OUT/instrument" -n "$COUNT" -o "$OUT/sounds/$NAME" --force
done
measure "$OUT/patches" "our causal patches, SIZE=$SIZE, exported as an instrument"
