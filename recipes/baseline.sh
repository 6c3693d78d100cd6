#!/usr/bin/env bash
# The official baseline of DCASE 2023 Task 7: VQ-VAE, PixelSNAIL, vocoder. DATA=folder OUT=folder recipes/baseline.sh
# SIZE=small: about 10 hours of one core with bf16 for 100,000 clips in each training.

source "$(dirname "$0")/common.sh"
begin baseline

case $SIZE in
  small)
    vqvae=(--steps 6250 --precision bf16)
    snail=(--size small --steps 12500 --precision bf16)
    ;;
  published)
    vqvae=(--precision bf16)
    snail=(--size published --steps 909000 --precision bf16)
    ;;
  toy)
    vqvae=(--size tiny --steps 2 --batch 4 --held-out 0.3)
    snail=(--size tiny --steps 2 --batch 4 --held-out 0.3)
    ;;
esac

vocoder
stage vqvae foleybox train vqvae "$TRAIN" --system baseline -o "$OUT/vqvae" "${vqvae[@]}" "${RUN[@]}"
stage codes foleybox encode "$OUT/vqvae" "$TRAIN" -o "$OUT/codes.npz" --force
stage pixelsnail foleybox train pixelsnail "$OUT/codes.npz" --system baseline -o "$OUT/pixelsnail" "${snail[@]}" "${RUN[@]}"
sounds "$OUT/pixelsnail" --vqvae "$OUT/vqvae" --vocoder "$VOCODER"
measure "$OUT/pixelsnail" "official baseline, SIZE=$SIZE: VQ-VAE, PixelSNAIL, vocoder $(basename "$VOCODER")"
