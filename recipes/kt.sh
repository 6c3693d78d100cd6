#!/usr/bin/env bash
# KT's systems: encoder (of the C-SupCon systems), GAN, vocoder. DATA=folder OUT=folder recipes/kt.sh SYSTEM
# SYSTEM: kt-2c, kt-csupcon, kt-2c-label, kt-csupcon-label (Table 1); kt-2c-t01, kt-csupcon-t01 (temperature 0.1).
# SIZE=small: plan S of width 16, 4,600 steps of 16 clips, one to two hours of one core. ENCODER names a run to use.

source "$(dirname "$0")/common.sh"
SYSTEM=${1:-}
case $SYSTEM in
  kt-2c | kt-csupcon | kt-2c-label | kt-csupcon-label | kt-2c-t01 | kt-csupcon-t01) ;;
  *) fail "SYSTEM ${SYSTEM:-is missing}: expected kt-2c, kt-csupcon, kt-2c-label, kt-csupcon-label, kt-2c-t01 or kt-csupcon-t01" ;;
esac
begin "$SYSTEM"

case $SIZE in
  small)
    encoder=(--batch 128 --contrastive-steps 1200)
    gan=(--preset small --average 0.998 --snapshots 1000 2000 3000)
    ;;
  published)
    encoder=(--width 64)
    gan=(--preset report --precision bf16)
    ;;
  toy)
    encoder=(--width 4 --contrastive-steps 1 --classifier-steps 1 --batch 7)
    gan=(--preset tiny --steps 2)
    ;;
esac

vocoder
case $SYSTEM in kt-csupcon*)
  if [ -z "${ENCODER:-}" ]; then
    ENCODER=$OUT/encoder
    stage encoder foleybox train encoder "$TRAIN" -o "$ENCODER" "${encoder[@]}" "${RUN[@]}"
  fi
  gan+=(--encoder "$ENCODER")
  ;;
esac
stage gan foleybox train sagan "$TRAIN" --system "$SYSTEM" -o "$OUT/gan" "${gan[@]}" "${RUN[@]}"
sounds "$OUT/gan" --vocoder "$VOCODER"
measure "$OUT/gan" "KT's $SYSTEM, SIZE=$SIZE, projection logit, vocoder $(basename "$VOCODER")"
