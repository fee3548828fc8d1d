/* fill.c - which pages a backup that is not complete still lacks (S4).
 *
 *   region 0        region 1        ...
 *   [#########|...window...|        ]
 *             from         to
 *
 * A backup that is being filled starts with an empty image and a cursor at the start. Each epoch carries
 *   before the cursor   of the epoch's pages the words that differ: the backup has what the shadow has;
 *   in the window       the epoch's pages, and of the others those that the shadow has, literally: the backup has none of them;
 *   behind the window   nothing: what is there comes in a later window, as it is then.
 * The cursor moves to the window's end when the epoch is committed, and stays if it is not. So at each commit: image = shadow before the cursor,
 * and the image has no page at or behind it. At the end of the last region the backup is complete.
 *
 * Pages without content cost nothing. RAM pages that are zero are left out, but looking at them is work, so it counts for an eighth.
 * A disk page in the map is sent even if it is zero: the base under it may not be.
 * Thread: the source's. */
#include "store/store-private.h"

#define ZERO_COST 8u

struct fill_cursor fill_window(const struct image *shadow, struct fill_cursor from, size_t budget, GArray *list[STORE_REGION_MAX])
{
	struct store_shape shape;
	image_shape(shadow, &shape);
	size_t left = MAX(budget, 1) * ZERO_COST;
	for (; from.region < shape.regions; from = (struct fill_cursor){ from.region + 1, 0 }) {
		for (; (from.page = image_next(shadow, from.region, from.page)) < shape.pages[from.region]; from.page++) {
			bool skip = from.region == 0 && image_zero(shadow, from.page);
			size_t cost = skip ? 1 : ZERO_COST;
			if (left < cost)
				return from;
			left -= cost;
			if (!skip)
				g_array_append_val(list[from.region], from.page);
		}
	}
	return from;
}
