/* Draws faces in the "Pixel Art" style of DiceBear (design by DiceBear, CC0 1.0), one JSON line each:

     npm install @dicebear/core@9 @dicebear/collection@9
     node draw_faces.mjs FIRST COUNT > faces.jsonl

   A line is {"svg": ..., "options": ...}; the face of number i is always drawn from the seed
   "face-i", so two ranges of numbers that do not meet are two independent sets of faces. */
import { createAvatar } from "@dicebear/core";
import { pixelArt } from "@dicebear/collection";
import { once } from "node:events";

const [first, count] = process.argv.slice(2).map(Number);
if (!Number.isInteger(first) || !Number.isInteger(count)) {
  console.error("usage: node draw_faces.mjs FIRST COUNT");
  process.exit(2);
}
for (let number = first; number < first + count; number++) {
  const face = createAvatar(pixelArt, {
    seed: `face-${number}`,
    size: 16,
    backgroundColor: ["b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf"],
    glassesProbability: 40,
    hatProbability: 25,
    beardProbability: 15,
  });
  const line = JSON.stringify({ svg: face.toString(), options: face.toJson().extra });
  if (!process.stdout.write(line + "\n")) await once(process.stdout, "drain");
}
