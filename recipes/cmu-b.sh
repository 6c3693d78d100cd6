#!/usr/bin/env bash
# CMU's track B: the baseline with a conditioned VQ-VAE and a cyclic learning rate. DATA=folder OUT=folder recipes/cmu-b.sh
# SIZE=small: about 10 hours of one core with bf16. HEAD=none trains the VQ-VAE without its head (the report's Table 3).

source "$(dirname "$0")/common.sh"
begin "cmu-b${HEAD:+-head-$HEAD}"

case $SIZE in
  small)
    vqvae=(--steps 6250)
    snail=(--size small --steps 12500)
    ;;
  published)
    vqvae=(--steps 218000)
    snail=(--size published)
    ;;
  toy)
    vqvae=(--size tiny --steps 2 --batch 4 --held-out 0.3)
    snail=(--size tiny --steps 2 --batch 4 --held-out 0.3)
    ;;
esac

vocoder
stage vqvae foleybox train vqvae "$TRAIN" --system cmu-b ${HEAD:+--head "$HEAD"} -o "$OUT/vqvae" "${vqvae[@]}" "${RUN[@]}"
stage codes foleybox encode "$OUT/vqvae" "$TRAIN" -o "$OUT/codes.npz" --force
stage pixelsnail foleybox train pixelsnail "$OUT/codes.npz" --system cmu-b -o "$OUT/pixelsnail" "${snail[@]}" "${RUN[@]}"
sounds "$OUT/pixelsnail" --vqvae "$OUT/vqvae" --vocoder "$VOCODER"
measure "$OUT/pixelsnail" "CMU's track B, SIZE=$SIZE: VQ-VAE with head ${HEAD:-pre}, PixelSNAIL, vocoder $(basename "$VOCODER")"
