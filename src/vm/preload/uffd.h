/* uffd.h - userfaultfd as used here: asynchronous write protection of shared memory, Linux 6.7. The constants are the kernel's
 * (include/uapi/linux/userfaultfd.h, include/uapi/linux/fs.h), given here because the headers of Debian 12 are older. */
#ifndef VCFT_VM_UFFD_H
#define VCFT_VM_UFFD_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#define UFFD_WANTED (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

/* PAGEMAP_SCAN: one pass over page tables that reports written pages and protects them again. */
struct uffd_region { uint64_t start, end, categories; };                /* struct page_region */
struct uffd_scan {                                                      /* struct pm_scan_arg */
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define UFFD_PAGEMAP_SCAN _IOWR('f', 16, struct uffd_scan)
#define UFFD_SCAN_WP_MATCHING (1u << 0)
#define UFFD_SCAN_CHECK_WPASYNC (1u << 1)
#define UFFD_PAGE_IS_WRITTEN (1u << 1)
#define UFFD_PAGE_IS_PRESENT (1u << 3)
#define UFFD_PAGE_IS_SWAPPED (1u << 4)

/* With faults of the kernel itself if we may; asynchronous protection never waits for anybody, so user mode alone does as well. */
static inline int uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	return fd >= 0 || errno != EPERM ? fd : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFDIO_COPY_MODE_WP
#define UFFDIO_COPY_MODE_WP ((uint64_t)1 << 1)
#endif

/* One that may make the kernel itself wait, for a process that has no right to that: by the device, opened by somebody who has. Linux 6.1. */
static inline int uffd_open_by(int device)
{
	return ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

static inline int uffd_api(int fd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_WANTED };
	return ioctl(fd, UFFDIO_API, &api);
}

/* missing: 0, or UFFDIO_REGISTER_MODE_MISSING. */
static inline int uffd_register(int fd, uint64_t address, uint64_t bytes, uint64_t missing)
{
	struct uffdio_register r = { .range = { address, bytes }, .mode = UFFDIO_REGISTER_MODE_WP | missing };
	return ioctl(fd, UFFDIO_REGISTER, &r);
}

static inline int uffd_protect(int fd, uint64_t address, uint64_t bytes)
{
	struct uffdio_writeprotect w = { .range = { address, bytes }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	return ioctl(fd, UFFDIO_WRITEPROTECT, &w);
}

#endif
