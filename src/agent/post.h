/* post.h - hand something from any thread to the loop, in order; a closed box drops what is still under way. And the other way: have what takes time
 * done by a thread, in order, and be told on the loop. */
#ifndef VCFT_AGENT_POST_H
#define VCFT_AGENT_POST_H

struct post_box;

struct post_box *post_box_new(void);
/* Loop's thread: nothing of this box is told any more. */
void post_box_close(struct post_box *box);
/* Whoever posts from a thread that may outlive the owner keeps a reference. Any thread. */
struct post_box *post_box_ref(struct post_box *box);
void post_box_unref(struct post_box *box);
/* Any thread: tell(data), then drop(data), on the loop's thread; only drop(data) if the box has been closed. drop may be NULL. */
void post_box_send(struct post_box *box, void (*tell)(void *data), void *data, void (*drop)(void *data));

/* One thread, which does one after the other. box is borrowed. */
struct post_queue;

struct post_queue *post_queue_new(struct post_box *box);
/* Returns when all that is under way has been done; whether it is told is the box's matter. */
void post_queue_free(struct post_queue *queue);
/* work(data) on the queue's thread, then tell(data) and drop(data) as by post_box_send(). */
void post_queue_add(struct post_queue *queue, void (*work)(void *data), void (*tell)(void *data), void *data, void (*drop)(void *data));

#endif
