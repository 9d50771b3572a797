/** An SVG path of a ring's part; angles in radians, clockwise from the top. */
export function arc(inner: number, outer: number, from: number, to: number): string {
  const end = Math.max(Math.min(to, from + 2 * Math.PI - 1e-4), from + 1e-6);
  const large = end - from > Math.PI ? 1 : 0;
  const at = (radius: number, angle: number) => `${radius * Math.sin(angle)} ${-radius * Math.cos(angle)}`;
  return [
    `M ${at(outer, from)}`,
    `A ${outer} ${outer} 0 ${large} 1 ${at(outer, end)}`,
    `L ${at(inner, end)}`,
    `A ${inner} ${inner} 0 ${large} 0 ${at(inner, from)}`,
    'Z',
  ].join(' ');
}
