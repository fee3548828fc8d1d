/* cut.h - the colour rule: what happens to a frame that meets a cut (P1, P2; design section 5, step 3).
 *
 * A frame's colour is the epoch its sender's port was in. A receiver in epoch e:
 *   colour = e   deliver.
 *   colour < e   it was in flight across the cut: deliver, and add it to the receiver's open checkpoint e-1.
 *   colour > e   it was sent after the sender's cut: hold it until the receiver has been cut.
 * Frames of another generation are dropped. Frames from the outside (uplink) have no colour and are always delivered.
 * Source: Lai and Yang, "On distributed snapshots" (1987), on FIFO channels with markers as Chandy and Lamport (1985).
 * Pure. Any thread. */
#ifndef VCFT_CORE_CUT_H
#define VCFT_CORE_CUT_H

#include "base/types.h"

enum cut_verdict { CUT_DELIVER, CUT_DELIVER_AND_RECORD, CUT_HOLD, CUT_DROP };

enum cut_verdict cut_rule(struct generation frame_generation, struct epoch_id colour, struct generation receiver_generation,
                          struct epoch_id receiver_epoch);

#endif
