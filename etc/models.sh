#!/bin/sh
# Fetches the YuNet face detection model (MIT, opencv_zoo) into models/ and checks what arrived.
set -eu
cd "$(dirname "$0")/.."
FILE=models/face_detection_yunet_2023mar.onnx
SHA256=8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4
# opencv_zoo keeps it in Git LFS; the training repository holds the same bytes as a plain file.
URLS="https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx
https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/master/onnx/yunet_s_640_640.onnx"

good() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$SHA256" ]; }

if good "$FILE"; then echo "$FILE is there and is the published file"; exit 0; fi
mkdir -p models
for url in $URLS; do
    echo "fetching $url"
    curl -fsSL --proto '=https' --retry 2 --max-time 120 -o "$FILE.part" "$url" || continue
    if good "$FILE.part"; then
        mv "$FILE.part" "$FILE"
        echo "$FILE (sha256 checked): name it in faced.toml as  model = \"...\"  with  kind = \"yunet\""
        exit 0
    fi
    echo "models: what came from $url is not the published file (sha256 differs); thrown away" >&2
    rm -f "$FILE.part"
done
echo "models: could not fetch the model; download it by hand into $FILE (sha256 $SHA256)" >&2
exit 69
