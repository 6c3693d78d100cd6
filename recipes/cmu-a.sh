#!/usr/bin/env bash
# CMU's track A: MVQVAE of CEmbeds, Zen PixelSNAIL, MHiFiGAN. DATA=folder OUT=folder recipes/cmu-a.sh
# ENCODER is the music encoder: a folder with MERT's files (default: from the Hugging Face hub), or stand-in (random weights).
# SIZE=small: a grid of 20 x 38 codes instead of 288 x 75; about a day of one core. VOCODER names a run of `train mhifigan`.

source "$(dirname "$0")/common.sh"
begin cmu-a
ENCODER=${ENCODER:-m-a-p/MERT-v1-330M}

case $SIZE in
  small)
    mvqvae=(--components 31 --stride 8 --steps 6250)
    snail=(--size small --steps 7500)
    mhifigan=(--width 128 --period-width 4 --scale-width 16 --steps 12500 --batch 8)
    ;;
  published)
    mvqvae=(--steps 218000)
    snail=(--size published)
    mhifigan=(--steps 49050)
    ;;
  toy)
    mvqvae=(--size tiny --components 31 --stride 8 --steps 2 --batch 2 --held-out 0.3)
    snail=(--size tiny --steps 2 --batch 2 --held-out 0.3)
    mhifigan=(--width 32 --period-width 2 --scale-width 16 --segment 16 --steps 1 --batch 2 --held-out 0.3)
    ;;
esac

stage mvqvae foleybox train mvqvae "$TRAIN" --encoder "$ENCODER" -o "$OUT/mvqvae" "${mvqvae[@]}" "${RUN[@]}"
stage codes foleybox encode "$OUT/mvqvae" "$TRAIN" -o "$OUT/codes.npz" --force
stage pixelsnail foleybox train pixelsnail "$OUT/codes.npz" --system cmu-a -o "$OUT/pixelsnail" "${snail[@]}" "${RUN[@]}"
if [ -z "${VOCODER:-}" ]; then
  VOCODER=$OUT/mhifigan
  stage mhifigan foleybox train mhifigan "$TRAIN" --encoder "$ENCODER" -o "$VOCODER" "${mhifigan[@]}" "${RUN[@]}"
fi
sounds "$OUT/pixelsnail" --vqvae "$OUT/mvqvae" --vocoder "$VOCODER"
measure "$OUT/pixelsnail" "CMU's track A, SIZE=$SIZE, encoder $(basename "$ENCODER"): MVQVAE, Zen PixelSNAIL, MHiFiGAN"
