/* cut.c - see cut.h. */
#include "core/cut.h"

#include "core/mutant.h"

enum cut_verdict cut_rule(struct generation frame_generation, struct epoch_id colour, struct generation receiver_generation,
                          struct epoch_id receiver_epoch)
{
	if (generation_cmp(frame_generation, receiver_generation) != 0 && !MUTANT(accept_old_frames))
		return CUT_DROP;
	int order = epoch_cmp(colour, receiver_epoch);
	if (MUTANT(deliver_newer) && order > 0)
		return CUT_DELIVER;
	if (MUTANT(drop_record) && order < 0)
		return CUT_DELIVER;
	return order == 0 ? CUT_DELIVER : order < 0 ? CUT_DELIVER_AND_RECORD : CUT_HOLD;
}
